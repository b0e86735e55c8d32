//! `nbd-mirror detach`: takes a device off its volume.

use std::path::PathBuf;

use clap::Args;

use super::attach::STATE_DIR;
use super::{EXIT_CODES, print};
use crate::attach;
use crate::attach::devices::Device;
use crate::attach::state::StateDir;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct DetachArgs {
    /// The device
    #[arg(value_name = "/dev/nbdN")]
    device: Device,
    /// Folder of the agents' state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Detach it even though it is in use: all that waits for it fails
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &DetachArgs) -> anyhow::Result<()> {
    attach::detach(args.device, &StateDir(args.state_dir.clone()), args.force)?;
    print(&format!("detached {}\n", args.device))
}
