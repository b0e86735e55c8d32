//! `nbd-mirror sync`: switches halves now and waits for the apply.

use super::{AdminArgs, ask, print, view};
use crate::control::admin::Request;

pub(super) fn run(args: &AdminArgs) -> anyhow::Result<()> {
    let data = ask(&args.admin, &Request::Sync)?;
    print(&view::outcome("synced", &data))
}
