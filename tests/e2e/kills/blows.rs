//! One round of a campaign: a load, a blow at a random moment, and everything back as it was.

use std::thread;

use super::link::Weather;
use super::{Round, Site, trial};
use crate::harness::{Chance, Daemon, Load, verb};

/// Who is killed.
#[derive(Clone, Copy, Debug)]
pub enum Blow {
    /// Neither: the link is all that suffers.
    None,
    Source,
    Destination,
    SourceFirst,
    DestinationFirst,
    /// The source, and again while it recovers.
    SourceTwice,
    /// The destination, and again while it recovers, meets its source, or applies.
    DestinationTwice,
    /// Both, and again while both recover and meet.
    BothTwice,
}

impl Blow {
    /// Any of them; [`Blow::None`] only where `more` happens than blows.
    pub fn any(chance: &mut Chance, more: bool) -> Blow {
        match chance.below(if more { 14 } else { 12 }) {
            0 | 1 => Blow::Source,
            2 | 3 => Blow::Destination,
            4 => Blow::SourceFirst,
            5 => Blow::DestinationFirst,
            6 | 7 => Blow::SourceTwice,
            8 | 9 => Blow::DestinationTwice,
            10 | 11 => Blow::BothTwice,
            _ => Blow::None,
        }
    }
}

/// Lets the load come to a moment at which the kill may fall: some answers later, some time later, or in the middle
/// of a switch.
pub fn wait_for_a_moment(round: &mut Round, site: &Site, load: &Load) {
    match round.chance.below(4) {
        0 => {
            // Few, where the link hardly lets any through.
            let answers = 1 + round.chance.below(if site.proxy.is_some() { 300 } else { 4000 });
            round.tell(format!("{answers} answers"));
            load.wait_for_answers(answers);
        }
        1 => {
            let admin = site.mirror.plan.source.admin();
            // How it ends is of no interest: the source may die before it does.
            thread::spawn(move || verb(&["sync", "--admin", admin.to_str().expect("test paths are UTF-8")]));
            let time = round.chance.moment(60);
            round.tell(format!("a sync and {time:?}"));
            thread::sleep(time);
        }
        _ => {
            let time = round.chance.moment(500);
            round.tell(format!("{time:?}"));
            thread::sleep(time);
        }
    }
}

/// Starts a daemon again, and kills it before long.
fn rise_and_fall(round: &mut Round, daemon: &mut Daemon) {
    daemon.spawn(&[]);
    thread::sleep(round.chance.moment(120));
    kill_living(daemon);
}

/// Kills a daemon that must not have ended by itself.
#[track_caller]
pub fn kill_living(daemon: &mut Daemon) {
    assert!(daemon.runs(), "it ended before it was killed:\n{}", daemon.log());
    daemon.kill();
}

/// Kills; afterwards the daemons that were killed don't run.
pub fn strike(round: &mut Round, site: &mut Site, blow: Blow) {
    let (source, destination) = (&mut site.mirror.source, &mut site.mirror.destination);
    match blow {
        Blow::None => {}
        Blow::Source => kill_living(source),
        Blow::Destination => kill_living(destination),
        Blow::SourceFirst => {
            kill_living(source);
            thread::sleep(round.chance.moment(30));
            kill_living(destination);
        }
        Blow::DestinationFirst => {
            kill_living(destination);
            thread::sleep(round.chance.moment(30));
            kill_living(source);
        }
        Blow::SourceTwice => {
            kill_living(source);
            for _ in 0..=round.chance.below(2) {
                rise_and_fall(round, source);
            }
        }
        Blow::DestinationTwice => {
            kill_living(destination);
            for _ in 0..=round.chance.below(2) {
                rise_and_fall(round, destination);
            }
        }
        Blow::BothTwice => {
            kill_living(source);
            kill_living(destination);
            destination.spawn(&[]);
            source.spawn(&[]);
            // Long enough, now and then, to meet and to go on where they were.
            thread::sleep(round.chance.moment(400));
            if round.chance.one_in(2) {
                kill_living(source);
                thread::sleep(round.chance.moment(30));
                kill_living(destination);
            } else {
                kill_living(destination);
                thread::sleep(round.chance.moment(30));
                kill_living(source);
            }
        }
    }
}

/// Plays one round; the site is as whole afterwards as it was before.
pub fn play(round: &mut Round, site: &mut Site) {
    let load = round.load(site);
    let weather = site.proxy.as_ref().map(|proxy| Weather::start(proxy, round.chance.clone()));
    wait_for_a_moment(round, site, &load);
    let blow = Blow::any(&mut round.chance, weather.is_some());
    round.tell(format!("{blow:?}"));
    strike(round, site, blow);
    if !site.mirror.destination.runs() && round.chance.one_in(3) {
        trial::promote_a_copy(round, site);
    }
    let alone = !site.mirror.source.runs() && !site.mirror.destination.runs() && round.chance.one_in(2);
    if alone {
        round.tell("the source is back first");
        site.mirror.source.restart();
        // It serves what was answered without its destination. The load waits, and no answer can come.
        site.ledger.check(&round.what("the exports without the destination"), &site.mirror.volumes());
    }
    site.restart_all();
    drop(weather);
    // An answer now says that all that was recovered is on both sides.
    load.wait_for_answers(1 + round.chance.below(400));
    load.stop();
    round.tell("all is back");
    site.ledger.settle(&round.what("the exports"), &site.mirror.volumes());
    if round.chance.one_in(3) {
        site.mirror.assert_in_step();
        site.ledger.check(&round.what("the images after a sync"), &site.mirror.images());
    }
}
