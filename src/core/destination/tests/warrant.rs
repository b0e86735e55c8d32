//! What is said of a promote, by what the source said.

use super::super::super::policy::OnDisconnect;
use super::super::super::recovery::warrant::Missing;
use super::world::*;
use crate::format::ids::Seq;
use crate::format::ping::{Ping, Standing};
use crate::format::wire::{Report, Signal};
use std::time::Duration;

impl World {
    /// The source pings so late, and it echoes that pong.
    fn hear(&mut self, standing: Standing, on_disconnect: OnDisconnect, echo: u64) {
        let answered = self.core.stored().seq;
        let ping = Ping { answered, standing, on_disconnect, timeout_ms: 5000, echo };
        self.signal(Signal::Ping(ping)).unwrap();
    }

    fn missing(&self) -> Missing {
        self.core.warrant(self.now).decide().action
    }
}

#[test]
fn the_timeout_counts_from_the_pong_that_is_echoed_not_from_when_the_ping_arrives() {
    let mut world = in_step(PLAN);
    world.now = Duration::from_secs(100);
    world.hear(Standing::Bound, OnDisconnect::Continue, 0);
    // It was said behind the welcome: nobody knows how long ago.
    assert_eq!(world.missing(), Missing::SinceTimeout);
    world.step().unwrap();
    assert!(world.reported().contains(&Report::Pong { stamp: 100_000 }));
    world.now = Duration::from_secs(104);
    world.hear(Standing::Bound, OnDisconnect::Continue, 100_000);
    assert_eq!(world.missing(), Missing::Nothing);
    world.now = Duration::from_millis(104_949);
    assert_eq!(world.missing(), Missing::Nothing);
    world.now = Duration::from_millis(104_950);
    assert_eq!(world.missing(), Missing::SinceTimeout);
    // A stamp that is yet to come isn't ours.
    world.hear(Standing::Bound, OnDisconnect::Continue, 200_000);
    assert_eq!(world.missing(), Missing::SinceTimeout);
}

#[test]
fn another_policy_binds_for_good_and_only_what_is_held_counts() {
    let mut world = in_step(PLAN);
    assert_eq!(world.missing(), Missing::SinceStart);
    world.hear(Standing::Bound, OnDisconnect::Stall, 0);
    world.core.handle_disconnected();
    world.now = Duration::from_secs(1 << 30);
    assert_eq!(world.missing(), Missing::Nothing);
    // A new connection: whatever it is told there isn't heard yet.
    world.run().unwrap();
    world.connect();
    assert_eq!(world.missing(), Missing::SinceStart);
    let answered = Seq(world.core.stored().seq.0 + 1);
    let (standing, on_disconnect) = (Standing::Bound, OnDisconnect::Fail);
    world.signal(Signal::Ping(Ping { answered, standing, on_disconnect, timeout_ms: 5000, echo: 0 })).unwrap();
    assert_eq!(world.missing(), Missing::SinceLacking);
    for (standing, missing) in [
        (Standing::Loose, Missing::SinceHeard),
        (Standing::Alone, Missing::SinceLacking),
        (Standing::Ended, Missing::Nothing),
    ] {
        world.hear(standing, OnDisconnect::Continue, 0);
        assert_eq!(world.missing(), missing);
    }
}
