//! A bad link: somebody does things to it at random while the load runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::{Chance, Proxy, Toward};

/// What the link suffers until this is dropped; it is calm again then.
pub struct Weather {
    over: Arc<AtomicBool>,
    proxy: Arc<Proxy>,
    thread: Option<JoinHandle<()>>,
}

impl Weather {
    pub fn start(proxy: &Arc<Proxy>, mut chance: Chance) -> Weather {
        let over = Arc::new(AtomicBool::new(false));
        let (until, at) = (Arc::clone(&over), Arc::clone(proxy));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                change(&at, &mut chance);
                // The next moment, not a wait for anything; a link that is cut takes 100 ms to come back.
                thread::sleep(Duration::from_millis(5) + chance.moment(250));
            }
        });
        Weather { over, proxy: Arc::clone(proxy), thread: Some(thread) }
    }
}

impl Weather {
    /// Ends, and leaves the link as it is at this moment.
    pub fn freeze(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
            self.proxy.calm();
        }
    }
}

/// One change of the weather.
fn change(proxy: &Proxy, chance: &mut Chance) {
    let toward = if chance.one_in(2) { Toward::Target } else { Toward::Dialer };
    match chance.below(10) {
        0 => proxy.cut(),
        1 => proxy.cut_after(chance.below(300_000) as usize),
        // Within a header, or right behind it.
        2 => proxy.cut_after(chance.below(5000) as usize),
        3 => proxy.close_one_way(toward),
        4 | 5 => proxy.set_delay(chance.moment(20), chance.moment(10)),
        6 => proxy.crumble(1 + chance.below(20) as usize, 1 + chance.below(20_000) as usize),
        7 => proxy.crumble(1 + chance.below(5000) as usize, 500_000),
        8 => {
            proxy.set_silent(true);
            thread::sleep(chance.moment(100));
            if chance.one_in(2) {
                proxy.cut();
            }
            proxy.set_silent(false);
        }
        _ => proxy.calm(),
    }
}
