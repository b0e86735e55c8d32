//! One round in which source and destination are apart for longer than the policy allows: the source goes on alone, and a
//! resync follows; with kills at any moment of all that, and promotes of what the destination holds.

use std::sync::Arc;
use std::thread;

use super::blows::{Blow, kill_living, strike, wait_for_a_moment};
use super::link::Weather;
use super::promotes::{assert_fenced, interrupt, kill_the_promoted, promote};
use super::{Round, Site, trial};

/// Takes the link away for longer than the timeout, with a kill of the source in between now and then, and gives it back.
fn outage(round: &mut Round, site: &mut Site) {
    let proxy = Arc::clone(site.proxy.as_ref().expect("these rounds have a link"));
    proxy.set_open(false);
    site.mirror.source.wait_for_state("degraded");
    let time = round.chance.moment(1500);
    round.tell(format!("alone for {time:?} and more"));
    thread::sleep(time);
    if round.chance.one_in(3) {
        round.tell("the source is killed while it is alone");
        kill_living(&mut site.mirror.source);
        site.mirror.source.restart();
        thread::sleep(round.chance.moment(300));
    }
    if round.chance.one_in(4) {
        round.tell("the destination is killed while it is alone");
        kill_living(&mut site.mirror.destination);
        trial::promote_a_copy(round, site);
        site.mirror.destination.restart();
    }
    proxy.set_open(true);
    round.tell("the link is back");
}

/// Waits for the two to meet, now and then, and for some moment.
fn wait_for_a_moment_of_the_resync(round: &mut Round, site: &Site) {
    if round.chance.one_in(2) {
        site.mirror.source.wait_for_status_of("a connection", |status| status["connected"] == true);
    }
    let time = round.chance.moment(600);
    round.tell(format!("{time:?}"));
    thread::sleep(time);
}

/// Plays one round; the two are in step afterwards.
pub fn play(round: &mut Round, site: &mut Site) {
    site.in_step = site.ledger.now();
    let load = round.load(site);
    wait_for_a_moment(round, site, &load);
    outage(round, site);
    for _ in 0..=round.chance.below(2) {
        wait_for_a_moment_of_the_resync(round, site);
        let weather = round.chance.one_in(3).then(|| {
            let proxy = site.proxy.as_ref().expect("these rounds have a link");
            Weather::start(proxy, round.chance.clone())
        });
        let blow = Blow::any(&mut round.chance, true);
        round.tell(format!("{blow:?}"));
        strike(round, site, blow);
        if !site.mirror.destination.runs() && round.chance.one_in(2) {
            trial::promote_a_copy(round, site);
        }
        site.restart_all();
        drop(weather);
    }
    load.wait_for_answers(1 + round.chance.below(200));
    load.stop();
    round.tell("all is back");
    site.ledger.settle(&round.what("the exports"), &site.mirror.volumes());
    // A source that was parted often waits for long before it trusts its link; one that starts anew doesn't.
    kill_living(&mut site.mirror.source);
    site.mirror.source.restart();
    site.mirror.source.wait_for_state("mirroring");
    site.mirror.assert_in_step();
    site.ledger.check(&round.what("the images in step"), &site.mirror.images());
}

/// Plays one round, up to the end of the mirror.
pub fn play_to_a_promote(round: &mut Round, mut site: Site) {
    let warm_up = round.load(&site);
    warm_up.wait_for_answers(200);
    warm_up.stop();
    site.mirror.assert_in_step();
    site.in_step = site.ledger.now();
    let load = round.load(&site);
    wait_for_a_moment(round, &site, &load);
    outage(round, &mut site);
    if round.chance.one_in(3) {
        site.mirror.source.wait_for_state("mirroring");
        // From now on nothing of what is answered may be missing.
        site.in_step = u64::MAX;
        round.tell("in step again");
    }
    wait_for_a_moment_of_the_resync(round, &site);
    let blow = if round.chance.one_in(2) { Blow::Source } else { Blow::DestinationFirst };
    round.tell(format!("{blow:?}"));
    strike(round, &mut site, blow);
    load.stop();
    site.restart_destination();
    for _ in 0..round.chance.below(3) {
        interrupt(round, &mut site.mirror);
    }
    promote(&site.mirror, false);
    round.tell("promoted");
    let in_step = site.in_step;
    site.ledger.settle_as_of(in_step, &round.what("the promoted exports"), &site.mirror.promoted_volumes());
    site.ledger.check(&round.what("the image files"), &site.mirror.promoted_images());
    site.mirror.source.restart();
    // One that was alone answers writes until it hears of the promote.
    site.mirror.source.wait_for_state("fenced");
    assert_fenced(round, &site.mirror);
    kill_the_promoted(round, &mut site);
    site.ledger.check(&round.what("the promoted exports in the end"), &site.mirror.promoted_volumes());
}
