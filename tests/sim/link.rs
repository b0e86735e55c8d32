//! The connection: two queues that keep their order, are late, and lose their tail when they are cut.

use crate::content::Word;
use crate::rng::Rng;
use nbd_mirror::format::superblock::Superblock;
use nbd_mirror::format::wire::{Report, Signal, Sum, Welcome};
use std::collections::VecDeque;

#[derive(Debug)]
pub enum Message {
    Hello(Box<Superblock>),
    Signal(Signal),
    Frame(Vec<Word>),
    /// Of this frame only so much arrives: this many sectors.
    Torn(Vec<Word>, usize),
    Welcome(Box<Welcome>),
    Report(Report),
    /// The answer to a question.
    Sums(u64, Vec<Sum>),
    Closed,
}

#[derive(Debug, Default)]
pub struct Link {
    pub to_destination: VecDeque<Message>,
    pub to_source: VecDeque<Message>,
    /// Whether the source believes that there is a connection.
    pub source_up: bool,
    /// Whether the destination has taken this connection; until then what it says goes to the one before.
    pub taken: bool,
    /// Nothing that is sent now arrives any more, towards the destination and towards the source.
    deaf: [bool; 2],
}

impl Link {
    /// The source connects anew. Of the connection before, a part of what was under way may still arrive.
    pub fn connect(&mut self, hello: Superblock, rng: &mut Rng) {
        self.cut(rng);
        let mut left = std::mem::take(&mut self.to_destination);
        // A connection that the destination hasn't heard of yet is as if it had never been.
        if let Some(at) = left.iter().position(|message| matches!(message, Message::Hello(_))) {
            left.truncate(at);
        }
        *self = Link { to_destination: left, source_up: true, ..Link::default() };
        self.to_destination.push_back(Message::Hello(Box::new(hello)));
    }

    pub fn send_to_destination(&mut self, message: Message) {
        if !self.deaf[0] {
            self.to_destination.push_back(message);
        }
    }

    pub fn send_to_source(&mut self, message: Message) {
        if !self.deaf[1] && self.taken {
            self.to_source.push_back(message);
        }
    }

    /// The connection breaks: a part of what is under way still arrives.
    pub fn cut(&mut self, rng: &mut Rng) {
        self.cut_to_destination(rng);
        self.cut_to_source(rng);
    }

    /// Only one direction breaks; the other lives until somebody notices.
    pub fn half_close(&mut self, rng: &mut Rng) {
        if rng.chance(500) { self.cut_to_destination(rng) } else { self.cut_to_source(rng) }
    }

    fn cut_to_destination(&mut self, rng: &mut Rng) {
        if !std::mem::replace(&mut self.deaf[0], true) {
            let kept = rng.below(self.to_destination.len() + 1);
            let torn = match self.to_destination.drain(kept..).next() {
                Some(Message::Frame(words)) => {
                    let arrived = rng.below(words.len());
                    Some(Message::Torn(words, arrived))
                }
                _ => None,
            };
            self.to_destination.extend(torn.into_iter().chain([Message::Closed]));
        }
    }

    fn cut_to_source(&mut self, rng: &mut Rng) {
        if !std::mem::replace(&mut self.deaf[1], true) {
            self.to_source.truncate(rng.below(self.to_source.len() + 1));
            self.to_source.push_back(Message::Closed);
        }
    }

    pub fn source_died(&mut self, rng: &mut Rng) {
        self.cut(rng);
        self.to_source.clear();
        self.source_up = false;
    }

    pub fn destination_died(&mut self, rng: &mut Rng) {
        self.cut(rng);
        self.to_destination.clear();
    }

    /// The source hangs up.
    pub fn closed_by_source(&mut self) {
        if !std::mem::replace(&mut self.deaf[0], true) {
            self.to_destination.push_back(Message::Closed);
        }
        self.deaf[1] = true;
        self.to_source.clear();
        self.source_up = false;
    }

    /// The destination hangs up; what it said still arrives.
    pub fn closed_by_destination(&mut self) {
        self.deaf[0] = true;
        self.to_destination.clear();
        if !std::mem::replace(&mut self.deaf[1], true) {
            self.to_source.push_back(Message::Closed);
        }
    }
}
