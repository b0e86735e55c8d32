//! The connection: two queues that keep their order, and lose their tail when they are cut.

use crate::disk::Rng;
use nbd_mirror::format::block::Block;
use nbd_mirror::format::superblock::Superblock;
use nbd_mirror::format::wire::{Report, Welcome};
use std::collections::VecDeque;

#[derive(Debug)]
pub enum Message {
    Hello(Box<Superblock>),
    Signal(Box<Block>),
    Frame(Vec<u8>),
    Welcome(Box<Welcome>),
    Report(Report),
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
    broken: bool,
}

impl Link {
    /// The source connects anew; the destination learns of the old connection's end with it.
    pub fn connect(&mut self, hello: Superblock) {
        *self = Link { source_up: true, ..Link::default() };
        self.to_destination.extend([Message::Closed, Message::Hello(Box::new(hello))]);
    }

    pub fn send_to_destination(&mut self, message: Message) {
        if !self.broken {
            self.to_destination.push_back(message);
        }
    }

    pub fn send_to_source(&mut self, message: Message) {
        if !self.broken && self.taken {
            self.to_source.push_back(message);
        }
    }

    /// The connection breaks: a part of what is under way still arrives.
    pub fn cut(&mut self, rng: &mut Rng) {
        if !self.broken {
            self.broken = true;
            for queue in [&mut self.to_destination, &mut self.to_source] {
                queue.truncate(rng.below(queue.len() as u64 + 1) as usize);
                queue.push_back(Message::Closed);
            }
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
    pub fn cut_by_source(&mut self) {
        self.broken = true;
        self.to_destination.push_back(Message::Closed);
        self.to_source.clear();
        self.source_up = false;
    }

    /// The destination hangs up; what it said still arrives.
    pub fn cut_by_destination(&mut self) {
        self.broken = true;
        self.to_destination.clear();
        self.to_source.push_back(Message::Closed);
    }
}
