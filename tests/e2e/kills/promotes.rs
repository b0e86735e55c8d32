//! One round that ends in a promote: nothing answered is lost, the destination may die in the middle of it, the old
//! source gets no write answered, and what is promoted survives kills of its own.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use super::blows::{kill_living, wait_for_a_moment};
use super::link::Weather;
use super::{Round, Site, VOLUMES};
use crate::harness::{Client, Endpoint, Habits, Load, Mirror, eventually, kind, verb};
use crate::promote::is_connected;

/// What has happened to the old source by the time of the promote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Old {
    Killed,
    /// Together with the destination, which was started again since.
    KilledWithDestination,
    /// It lives, and is connected.
    Lives,
    /// It lives, and nothing that is said over the link arrives.
    Unreachable,
}

/// Promotes until it is done, whoever died in between; forces it only where something may be missing or the source lives.
#[track_caller]
pub fn promote(mirror: &Mirror, lives: bool) {
    eventually("the promote is done", Duration::from_secs(30), || {
        let warranted = mirror.destination.warrants("alpha");
        let finished = mirror.destination.promote("alpha", !warranted);
        // A warrant may have run out in between; a source that was killed may still seem to be connected.
        let done = finished.status.success() || finished.stderr.contains("promoted already");
        assert!(done || warranted || (!lives && is_connected(&finished)), "the promote failed:\n{}", finished.stderr);
        done.then_some(())
    });
}

/// Kills the destination while it is forced to promote, at some moment before, in or after its work, and starts it again.
pub fn interrupt(round: &mut Round, mirror: &mut Mirror) {
    let admin = mirror.plan.destination.admin();
    let promoting = thread::spawn(move || {
        let admin = admin.to_str().expect("test paths are UTF-8");
        verb(&["promote", "--admin", admin, "alpha", "--force"])
    });
    let time = round.chance.moment(100);
    round.tell(format!("{time:?} of a promote"));
    thread::sleep(time);
    kill_living(&mut mirror.destination);
    let finished = promoting.join().expect("the promote's thread must not panic");
    round.tell(format!("it ended with {}", finished.status));
    mirror.destination.restart();
}

/// A write to the old source, where that takes clients at all.
fn send_to_the_old(mirror: &Mirror, volume: usize) -> Option<Client> {
    let mut client = Client::go(&mirror.unix(), &format!("vol{volume}")).ok()?;
    client.send(0, kind::WRITE, 0, 4096, &[0xee; 4096]).ok()?;
    Some(client)
}

/// A client of the old source is left without a reply.
#[track_caller]
fn assert_no_reply(round: &Round, mut client: Client) {
    match client.answer() {
        Ok((_, error)) => panic!("{}: it answered a write (error {error})", round.what("the old source")),
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{}: a client should be left without a reply, not with: {error}",
            round.what("the old source")
        ),
    }
}

/// The old source, whether it knows of the promote by now or not, answers no write; soon it knows.
#[track_caller]
pub fn assert_fenced(round: &Round, mirror: &Mirror) {
    (0..VOLUMES).filter_map(|volume| send_to_the_old(mirror, volume)).for_each(|client| assert_no_reply(round, client));
    mirror.source.wait_for_status("state \"fenced\"", |status| status["state"] == "fenced");
}

/// The old source starts again after the promote; now and then there is nobody at first to tell it of that.
fn bring_back(round: &mut Round, mirror: &mut Mirror) {
    if round.chance.one_in(2) {
        return mirror.source.restart();
    }
    round.tell("the old source comes back while the destination is down");
    kill_living(&mut mirror.destination);
    mirror.source.restart();
    let clients: Vec<Client> = (0..VOLUMES).filter_map(|volume| send_to_the_old(mirror, volume)).collect();
    thread::sleep(round.chance.moment(60));
    mirror.destination.restart();
    clients.into_iter().for_each(|client| assert_no_reply(round, client));
}

/// Writers on the promoted exports, and kills of who serves them.
pub fn kill_the_promoted(round: &mut Round, site: &mut Site) {
    let exports: Vec<(Endpoint, String)> =
        site.mirror.exports().into_iter().map(|(_, name)| (site.mirror.promoted(), name)).collect();
    for _ in 0..=round.chance.below(2) {
        let habits = Habits { seed: round.chance.next(), largest: 64, mixed: true, rest: Duration::ZERO };
        let load = Load::with(&site.ledger, &exports, 2, habits);
        let time = round.chance.moment(300);
        round.tell(format!("{time:?} of writes to what was promoted"));
        thread::sleep(time);
        kill_living(&mut site.mirror.destination);
        if round.chance.one_in(3) {
            site.mirror.destination.spawn(&[]);
            thread::sleep(round.chance.moment(120));
            kill_living(&mut site.mirror.destination);
        }
        site.mirror.destination.restart();
        load.wait_for_answers(1 + round.chance.below(200));
        load.stop();
        site.ledger.settle(&round.what("the promoted exports after a kill"), &site.mirror.promoted_volumes());
    }
}

/// Brings the old source to where the round wants it.
fn fell(round: &mut Round, site: &mut Site) -> Old {
    let old = match round.chance.below(if site.proxy.is_some() { 7 } else { 5 }) {
        0 | 1 => Old::Killed,
        2 => Old::KilledWithDestination,
        3 | 4 => Old::Lives,
        _ => Old::Unreachable,
    };
    round.tell(format!("the old source: {old:?}"));
    let mirror = &mut site.mirror;
    match (old, &site.proxy) {
        (Old::Killed, _) => kill_living(&mut mirror.source),
        (Old::KilledWithDestination, _) => {
            let (first, second) = if round.chance.one_in(2) {
                (&mut mirror.source, &mut mirror.destination)
            } else {
                (&mut mirror.destination, &mut mirror.source)
            };
            kill_living(first);
            thread::sleep(round.chance.moment(30));
            kill_living(second);
            mirror.destination.restart();
        }
        (Old::Unreachable, Some(proxy)) => proxy.set_silent(true),
        (Old::Unreachable | Old::Lives, _) => {}
    }
    old
}

/// Plays one round, up to the end of the mirror.
pub fn play(round: &mut Round, mut site: Site) {
    let load = round.load(&site);
    let weather = site.proxy.as_ref().map(|proxy| Weather::start(proxy, round.chance.clone()));
    wait_for_a_moment(round, &site, &load);
    // What the weather did last stays as it is.
    if let Some(weather) = weather {
        weather.freeze();
    }
    let old = fell(round, &mut site);
    let lives = matches!(old, Old::Lives | Old::Unreachable);
    let mut back = lives;
    for _ in 0..round.chance.below(3) {
        interrupt(round, &mut site.mirror);
        if !back && round.chance.one_in(3) {
            // It may find a destination that was not promoted, and go on, or be fenced.
            round.tell("the old source comes back");
            site.mirror.source.restart();
            back = true;
        }
    }
    promote(&site.mirror, back);
    round.tell("promoted");
    if old == Old::Unreachable {
        // Whatever the old source answered, it answered before.
        site.ledger.check(&round.what("the promoted exports, with the link silent"), &site.mirror.promoted_volumes());
    }
    site.calm();
    load.stop();
    site.ledger.settle(&round.what("the promoted exports"), &site.mirror.promoted_volumes());
    site.ledger.check(&round.what("the image files"), &site.mirror.promoted_images());
    if !back {
        bring_back(round, &mut site.mirror);
    }
    assert_fenced(round, &site.mirror);
    kill_the_promoted(round, &mut site);
    if round.chance.one_in(2) {
        kill_living(&mut site.mirror.source);
        site.mirror.source.restart();
    }
    assert_fenced(round, &site.mirror);
    site.ledger.check(&round.what("the promoted exports in the end"), &site.mirror.promoted_volumes());
}
