//! Files and folders of a faulty disk.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::contents::{Contents, Fate};
use super::hash;

/// A name in a folder.
pub struct Entry {
    pub node: u64,
    /// Whether its folder was synced since.
    stable: bool,
}

pub enum Kind {
    Folder(BTreeMap<OsString, Entry>),
    File(Contents),
}

pub struct Node {
    /// Its path below the mount point.
    pub path: String,
    pub kind: Kind,
}

/// All nodes; the root is number 1, as FUSE has it.
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

impl Tree {
    pub fn new() -> Tree {
        let root = Node { path: String::new(), kind: Kind::Folder(BTreeMap::new()) };
        Tree { nodes: BTreeMap::from([(1, root)]), next: 2 }
    }

    pub fn node(&mut self, number: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&number)
    }

    pub fn file(&mut self, number: u64) -> Option<&mut Contents> {
        match &mut self.nodes.get_mut(&number)?.kind {
            Kind::File(contents) => Some(contents),
            Kind::Folder(_) => None,
        }
    }

    pub fn folder(&mut self, number: u64) -> Option<&mut BTreeMap<OsString, Entry>> {
        match &mut self.nodes.get_mut(&number)?.kind {
            Kind::Folder(entries) => Some(entries),
            Kind::File(_) => None,
        }
    }

    pub fn find(&mut self, folder: u64, name: &OsStr) -> Option<u64> {
        Some(self.folder(folder)?.get(name)?.node)
    }

    /// Makes a file or folder; `None` where `folder` isn't one.
    pub fn make(&mut self, folder: u64, name: &OsStr, kind: Kind) -> Option<u64> {
        let path = format!("{}/{}", self.node(folder)?.path, name.to_string_lossy());
        let number = self.next;
        self.folder(folder)?.insert(name.to_owned(), Entry { node: number, stable: false });
        self.nodes.insert(number, Node { path, kind });
        self.next += 1;
        Some(number)
    }

    /// Removes a name, and what it named.
    pub fn remove(&mut self, folder: u64, name: &OsStr) -> Option<Node> {
        let entry = self.folder(folder)?.remove(name)?;
        self.nodes.remove(&entry.node)
    }

    /// Gives a file another name in its folder, which isn't one of another; false: it isn't there, or that is.
    pub fn rename(&mut self, folder: u64, name: &OsStr, new: &OsStr) -> bool {
        let Some(entries) = self.folder(folder) else { return false };
        if entries.contains_key(new) {
            return false;
        }
        let Some(Entry { node, .. }) = entries.remove(name) else { return false };
        entries.insert(new.to_owned(), Entry { node, stable: false });
        if let Some(node) = self.node(node) {
            node.path.truncate(node.path.len() - name.len());
            node.path.push_str(&new.to_string_lossy());
        }
        true
    }

    pub fn sync_folder(&mut self, folder: u64) {
        for entry in self.folder(folder).into_iter().flat_map(|entries| entries.values_mut()) {
            entry.stable = true;
        }
    }

    /// Pages that all files take.
    pub fn pages(&self) -> u64 {
        let pages = |node: &Node| match &node.kind {
            Kind::File(contents) => contents.pages(),
            Kind::Folder(_) => 0,
        };
        self.nodes.values().map(pages).sum()
    }

    pub fn settle(&mut self) {
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(contents) => contents.sync_all(),
                Kind::Folder(entries) => entries.values_mut().for_each(|entry| entry.stable = true),
            }
        }
    }

    /// A power cut; returns how many writes weren't kept whole.
    pub fn cut(&mut self, fate: impl Fn(u64) -> Fate, seed: u64) -> usize {
        let mut lost = 0;
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(contents) => lost += contents.cut(&fate),
                Kind::Folder(entries) => {
                    entries.retain(|_, entry| entry.stable || hash(seed ^ entry.node << 40) & 1 == 0);
                    entries.values_mut().for_each(|entry| entry.stable = true);
                }
            }
        }
        lost
    }
}
