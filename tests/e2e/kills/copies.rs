//! One round that kills during the first sync: whatever dies, and however often, the copy is whole in the end.

use super::blows::{Blow, strike, wait_for_a_moment};
use super::link::Weather;
use super::{Round, Run, SIZE, Site, VOLUMES, trial};
use crate::harness::{MIB, fill_pattern};

/// Bytes of each volume: long enough to be copied for a while.
const LARGE: u64 = 24 * MIB;
/// Bytes a second over the link.
const RATE: u64 = 40 * MIB;

/// A mirror whose volumes hold more than zeros, and whose first sync has hardly begun.
#[track_caller]
pub fn begin(run: &Run) -> Site {
    let plan = run.plan(LARGE);
    for volume in 0..VOLUMES {
        // Behind what the load writes to.
        fill_pattern(plan.volume(volume), volume as u64, SIZE, (LARGE - SIZE) as usize);
    }
    let site = Site::of(run, plan);
    if let Some(proxy) = &site.proxy {
        proxy.set_rate(RATE);
    }
    site
}

/// Plays one round, up to the end of the mirror.
pub fn play(round: &mut Round, mut site: Site) {
    let load = round.load(&site);
    let weather = site.proxy.as_ref().filter(|_| round.chance.one_in(2));
    let weather = weather.map(|proxy| Weather::start(proxy, round.chance.clone()));
    for _ in 0..=round.chance.below(4) {
        wait_for_a_moment(round, &site, &load);
        let blow = Blow::any(&mut round.chance, true);
        round.tell(format!("{blow:?}"));
        strike(round, &mut site, blow);
        site.restart_all();
    }
    drop(weather);
    load.wait_for_answers(100);
    load.stop();
    site.ledger.settle(&round.what("the exports"), &site.mirror.volumes());
    site.mirror.assert_in_step();
    round.tell("copied");
    site.ledger.check(&round.what("the images after the first sync"), &site.mirror.images());
    // From now on it can be promoted, at any moment.
    let load = round.load(&site);
    wait_for_a_moment(round, &site, &load);
    strike(round, &mut site, Blow::Destination);
    trial::promote_a_copy(round, &site);
    site.restart_all();
    load.stop();
    site.ledger.settle(&round.what("the exports in the end"), &site.mirror.volumes());
}
