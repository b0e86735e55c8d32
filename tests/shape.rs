//! The shape of the code: layers depend one way, the lower two are free of the outside world, `unsafe`
//! stays in the engine, and no file grows beyond what one reads in one go.
//!
//! The sources are read as text: comments and literals are dropped, the rest is cut into tokens, and
//! every path (also out of nested `use` groups) is compared with the rules.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the crate, lowest first: each may name only itself and those before it.
const LAYERS: [&str; 8] = ["limits", "canary", "format", "core", "engine", "attach", "control", "cli"];

/// Layers that must run the same way every time, everywhere: they are what a simulator runs.
const PURE_LAYERS: [&str; 4] = ["limits", "canary", "format", "core"];

/// What a pure layer may not name: sockets, files, threads, clocks, randomness, the system.
const OUTSIDE: [&str; 17] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::io::stdin",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "crossbeam_channel",
    "nix",
    "libc",
    "io_uring",
    "rand",
    "getrandom",
    "fastrand",
];

/// The only layer that may say `unsafe`.
const UNSAFE_LAYER: &str = "engine";

/// No source file has more lines.
const MAX_LINES: usize = 799;

#[test]
fn layers_depend_one_way() {
    assert_clean(|file| {
        let layer = file.layer();
        let rank = rank(layer).ok_or_else(|| format!("{layer} is not in LAYERS"))?;
        let upward = file.crate_modules().into_iter().find(|module| self::rank(module).is_none_or(|r| r > rank));
        refuse(upward.map(|module| format!("{layer} names crate::{module}, which stands above it")))
    });
}

/// Attaching and the daemons stand beside each other, and it needs of the engine only what no safe call does.
#[test]
fn attach_stands_beside_control() {
    assert_clean(|file| {
        let named = |module: &str| file.crate_modules().iter().any(|found| found == module);
        if file.layer() == "control" && named("attach") {
            return Err("control names crate::attach".to_owned());
        }
        if file.layer() != "attach" {
            return Ok(());
        }
        let foreign = ["core", "limits", "canary"].into_iter().find(|module| named(module));
        refuse(foreign.map(|module| format!("attach names crate::{module}")))?;
        let engine = |path: &&Vec<String>| path.starts_with(&["crate".to_owned(), "engine".to_owned()]);
        let paths = file.paths();
        let wide = paths.iter().filter(engine).find(|path| path.get(2).is_none_or(|module| module != "process"));
        refuse(wide.map(|path| format!("names {}", path.join("::"))))
    });
}

#[test]
fn pure_layers_name_nothing_outside() {
    assert_clean(|file| {
        if !PURE_LAYERS.contains(&file.layer()) {
            return Ok(());
        }
        refuse(names_outside(&file.paths()).map(|path| format!("names {path}")))
    });
}

#[test]
fn unsafe_stays_in_the_engine() {
    assert_clean(|file| {
        let found = file.layer() != UNSAFE_LAYER && file.tokens.iter().any(|t| t == "unsafe");
        refuse(found.then(|| "says `unsafe` outside the engine".to_owned()))
    });
}

#[test]
fn files_stay_short() {
    assert_clean(|file| {
        let lines = file.text.lines().count();
        refuse((lines > MAX_LINES).then(|| format!("has {lines} lines, over {MAX_LINES}")))
    });
}

#[test]
fn the_rules_notice_what_they_forbid() {
    let upward = [
        "use crate::engine::Ring;",
        "fn f() { crate::cli::main() }",
        "use crate::{format::frame, engine::{self, disk}};",
        "use super::super::control::config;",
        "use crate::*;",
        "use crate::unheard_of;",
    ];
    for code in upward {
        let file = Source::new("core/frame.rs", code);
        let modules = file.crate_modules();
        assert!(modules.iter().any(|m| rank(m).is_none_or(|r| r > 2)), "{code}");
    }
    let outside = [
        "use std::time::Instant;",
        "use std::time::{Duration, SystemTime as Clock};",
        "use std::{collections::BTreeMap, fs::File};",
        "use std::time;",
        "use std::time::{self, Duration};",
        "use std::time::*;",
        "let t = ::std::thread::spawn(f);",
        "let x = '\"'; libc::getpid(); // \"",
    ];
    for code in outside {
        assert!(names_outside(&Source::new("core/x.rs", code).paths()).is_some(), "{code}");
    }
    let allowed = [
        "use std::time::Duration;",
        "use crate::format::{frame::Header, nbd};",
        "/// As [`std::fs`] and crate::engine do.\nfn f<'a>(rand: &'a str) {}",
        "/* use crate::cli; /* nested */ std::net */ let s = \"crate::cli std::fs\";",
        "let s = r#\"unsafe \" crate::cli::x\"#; pub(crate) fn g(c: u8) -> bool { c == b'\\'' }",
    ];
    for code in allowed {
        let file = Source::new("core/x.rs", code);
        assert_eq!(names_outside(&file.paths()), None, "{code}");
        let modules = file.crate_modules();
        assert!(modules.iter().all(|m| rank(m).is_some_and(|r| r <= 2)), "{code}");
        assert!(!file.tokens.iter().any(|t| t == "unsafe"), "{code}");
    }
}

/// Checks every source file but the two roots, and shows all that is wrong at once.
fn assert_clean(rule: impl Fn(&Source) -> Result<(), String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut names = Vec::new();
    collect(&root, &mut names);
    let wrong: Vec<String> = names
        .iter()
        .map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap())
        .filter(|name| !["lib.rs", "main.rs"].contains(name))
        .map(|name| Source::new(name, &fs::read_to_string(root.join(name)).unwrap()))
        .filter_map(|file| rule(&file).err().map(|e| format!("src/{}: {e}", file.name)))
        .collect();
    assert!(names.len() > LAYERS.len(), "no sources below {}", root.display());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn collect(folder: &Path, names: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            names.push(path);
        }
    }
}

fn refuse(what: Option<String>) -> Result<(), String> {
    what.map_or(Ok(()), Err)
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|&layer| layer == module)
}

/// The first path that names something of [`OUTSIDE`], or a whole module that contains it.
fn names_outside(paths: &[Vec<String>]) -> Option<String> {
    let outside = |path: &&Vec<String>| {
        let whole = path.last().is_some_and(|last| last == "*" || last == "self");
        let path = &path[..path.len() - usize::from(whole)];
        OUTSIDE.iter().any(|banned| {
            let banned: Vec<&str> = banned.split("::").collect();
            let common = path.iter().zip(&banned).take_while(|(a, b)| a == b).count();
            // A crate's name alone may be a variable's; used as a crate it has a path behind it.
            let is_path = path.len() > 1 || (whole && !path.is_empty());
            is_path && common == path.len().min(banned.len())
        })
    };
    paths.iter().find(outside).map(|path| path.join("::"))
}

/// One file below `src/`.
struct Source {
    name: String,
    text: String,
    tokens: Vec<String>,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), text: text.to_owned(), tokens: tokens(text) }
    }

    /// The crate's module that the file belongs to.
    fn layer(&self) -> &str {
        let first = self.name.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Number of modules around the file's items, the crate's root not counted.
    fn depth(&self) -> usize {
        let depth = self.name.split('/').count();
        depth - usize::from(self.name.ends_with("/mod.rs"))
    }

    /// Every path in the file, groups expanded.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        for (i, token) in self.tokens.iter().enumerate() {
            let continues = i > 1 && self.tokens[i - 1] == "::" && is_name(&self.tokens[i - 2]);
            if is_name(token) && !continues {
                expand(&self.tokens, i, &[], &mut paths);
            }
        }
        paths
    }

    /// Modules of the crate that the file names, by `crate::` or by climbing up with `super::`.
    fn crate_modules(&self) -> Vec<String> {
        let module = |path: Vec<String>| {
            let supers = path.iter().take_while(|name| *name == "super").count();
            let climbs = supers >= self.depth();
            match path.first()?.as_str() {
                "crate" => path.get(1).cloned(),
                // In an inline module the same climb ends lower: only a layer's name counts.
                "super" if climbs => path.get(supers).filter(|m| rank(m).is_some()).cloned(),
                _ => None,
            }
        };
        self.paths().into_iter().filter_map(module).collect()
    }
}

/// Reads the path that starts at token `i` behind `prefix`; returns where it ends.
fn expand(tokens: &[String], i: usize, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let token = |i: usize| tokens.get(i).map_or("", String::as_str);
    if token(i) == "{" {
        let mut next = i + 1;
        while next < tokens.len() && token(next) != "}" {
            let is_item = is_name(token(next)) || token(next) == "*" || token(next) == "{";
            next = match token(next) {
                "as" => next + 2,
                _ if is_item => expand(tokens, next, prefix, paths),
                _ => next + 1,
            };
        }
        return next + 1;
    }
    let mut path = prefix.to_vec();
    path.push(tokens[i].clone());
    let next = token(i + 2);
    if token(i + 1) == "::" && (is_name(next) || next == "{" || next == "*") {
        return expand(tokens, i + 2, &path, paths);
    }
    paths.push(path);
    i + 1
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Cuts Rust into names, `::` and single characters, without comments, literals and white space.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let starts = |i: usize, s: &str| s.chars().enumerate().all(|(n, c)| at(i + n) == c);
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        if starts(i, "//") {
            i = skip_until(&chars, i, |j| at(j) == '\n');
        } else if starts(i, "/*") {
            let mut depth = 1;
            i += 2;
            while depth > 0 && i < chars.len() {
                let step = match (starts(i, "/*"), starts(i, "*/")) {
                    (true, _) => 1,
                    (_, true) => -1,
                    _ => 0,
                };
                depth += step;
                i += if step == 0 { 1 } else { 2 };
            }
        } else if let Some(hashes) = raw_string_hashes(&chars, i) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = skip_until(&chars, i, |j| at(j) == '"') + 1;
            i = skip_until(&chars, body, |j| starts(j, &end)) + end.len();
        } else if at(i) == '"' || (at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'')) {
            i = skip_quoted(&chars, i);
        } else if at(i).is_alphanumeric() || at(i) == '_' {
            let end = skip_until(&chars, i, |j| !at(j).is_alphanumeric() && at(j) != '_');
            tokens.push(chars[i..end].iter().collect());
            i = end;
        } else if starts(i, "::") {
            tokens.push("::".to_owned());
            i += 2;
        } else {
            if !at(i).is_whitespace() {
                tokens.push(at(i).to_string());
            }
            i += 1;
        }
    }
    tokens
}

/// Where `stop` holds first, from `i` on; the end of the text otherwise.
fn skip_until(chars: &[char], i: usize, stop: impl Fn(usize) -> bool) -> usize {
    (i..chars.len()).find(|&j| stop(j)).unwrap_or(chars.len())
}

/// Behind the string or character literal whose opening quote stands at `i`.
fn skip_quoted(chars: &[char], i: usize) -> usize {
    let mut j = i + 1;
    while j < chars.len() && chars[j] != chars[i] {
        j += if chars[j] == '\\' { 2 } else { 1 };
    }
    j + 1
}

/// The number of `#` of the raw string that starts at `i`, if one does.
fn raw_string_hashes(chars: &[char], i: usize) -> Option<usize> {
    let mut j = i;
    if matches!(chars[j], 'b' | 'c') {
        j += 1;
    }
    if i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_') {
        return None;
    }
    if chars.get(j) != Some(&'r') {
        return None;
    }
    let hashes = chars[j + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(j + 1 + hashes) == Some(&'"')).then_some(hashes)
}
