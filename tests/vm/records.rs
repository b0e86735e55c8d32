//! What an application does that needs its records to last: write one, fsync, go on with the next.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::{pattern, wait_until};

/// Bytes of a record.
const RECORD: usize = 4096;

/// The loop, while it runs. What was acknowledged is remembered here, outside the file system.
pub struct Records {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// When the fsync of each record came back.
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    failed: Arc<Mutex<Option<String>>>,
    thread: JoinHandle<()>,
}

impl Records {
    /// Begins to write records into a new file, each behind the last.
    pub fn start(path: &Path) -> Records {
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("make a file of records");
        let stop: Arc<AtomicBool> = Arc::default();
        let acknowledged: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let failed: Arc<Mutex<Option<String>>> = Arc::default();
        let (stopped, done, why) = (Arc::clone(&stop), Arc::clone(&acknowledged), Arc::clone(&failed));
        let thread = thread::spawn(move || {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let written =
                    file.write_all_at(&pattern(number, RECORD), number * RECORD as u64).and_then(|()| file.sync_all());
                if let Err(error) = written {
                    *why.lock().unwrap() = Some(format!("record {number}: {error}"));
                    return;
                }
                done.lock().unwrap().push(Instant::now());
            }
        });
        Records { path: path.to_owned(), stop, acknowledged, failed, thread }
    }

    /// How many records were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until `more` records more were acknowledged than at this moment.
    #[track_caller]
    pub fn wait_for(&self, more: usize, limit: Duration) {
        let goal = self.count() + more;
        let start = Instant::now();
        while self.count() < goal {
            if let Some(why) = &*self.failed.lock().unwrap() {
                panic!("the application got an error: {why}");
            }
            assert!(start.elapsed() < limit, "no {more} records within {limit:?}: {} of {goal}", self.count());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// When the record of this number was acknowledged.
    pub fn acknowledged_at(&self, number: usize) -> Option<Instant> {
        self.acknowledged.lock().unwrap().get(number).copied()
    }

    /// The longest time between two acknowledgements since the record of this number.
    pub fn longest_pause(&self, from: usize) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        let recent = &acknowledged[from.saturating_sub(1)..];
        recent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Waits until the loop has got an error, which the loss of its disk brings; what it had acknowledged must be elsewhere.
    #[track_caller]
    pub fn cut_off(self, limit: Duration) -> Written {
        wait_until("the application gets an error", limit, || self.failed.lock().unwrap().is_some());
        let Records { path, acknowledged, thread, .. } = self;
        thread.join().expect("the records' thread");
        Written::of(&path, &acknowledged)
    }

    /// Ends the loop, and asserts that each acknowledged record can be read.
    #[track_caller]
    pub fn end(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the records' thread");
        let failed = self.failed.lock().unwrap().take();
        assert!(failed.is_none(), "the application got an error: {failed:?}");
        let written = Written::of(&self.path, &self.acknowledged);
        written.check(self.path.parent().expect("a file's folder"));
        written
    }
}

/// Records that were acknowledged.
pub struct Written {
    name: PathBuf,
    pub count: usize,
}

impl Written {
    fn of(path: &Path, acknowledged: &Mutex<Vec<Instant>>) -> Written {
        Written { name: path.file_name().expect("a file's name").into(), count: acknowledged.lock().unwrap().len() }
    }

    /// Asserts that each of them is in the file system that is mounted here.
    #[track_caller]
    pub fn check(&self, mounted: &Path) {
        self.check_first(self.count, mounted);
    }

    /// The same for the first `count`.
    #[track_caller]
    pub fn check_first(&self, count: usize, mounted: &Path) {
        let file = File::open(mounted.join(&self.name)).expect("open the file of records");
        let mut bytes = [0; RECORD];
        for number in 0..count {
            let read = file.read_exact_at(&mut bytes, (number * RECORD) as u64);
            assert!(read.is_ok(), "record {number} of {count} can't be read: {read:?}");
            assert!(bytes[..] == pattern(number as u64, RECORD), "record {number} of {count} isn't what was written");
        }
    }
}
