//! Decisions as tables: what is found, as a few small facts, and what is done about it, row by row.
//!
//! A row names the facts that it asks for and leaves the others open. Each combination meets exactly one row, in
//! whatever order they stand: `tests.rs` tries all of them, and docs/recovery.md shows the very same rows.

use std::fmt::Debug;

/// One thing that is found: one of a few values, each with the words that the documents use for it.
pub trait Fact: Copy + PartialEq + Debug + 'static {
    /// What the fact is about.
    const NAME: &'static str;
    /// All its values.
    const ALL: &'static [Self];
    /// The value in words.
    fn words(self) -> &'static str;
}

/// A row of a table.
pub trait Row: Sized + 'static {
    /// One combination of facts.
    type Found: Copy + PartialEq + Debug + 'static;
    /// The table.
    const TABLE: &'static [Self];
    /// The names of the facts, in the order of [`Row::cells`].
    fn headings() -> Vec<&'static str>;
    /// The row in words: a cell for each fact, what is done, and why.
    fn cells(&self) -> Vec<String>;
    /// Whether a combination meets this row.
    fn meets(&self, found: &Self::Found) -> bool;
    /// Every combination there is.
    fn every() -> Vec<Self::Found>;
}

/// The row that a combination meets.
pub fn decide<R: Row>(found: &R::Found) -> &'static R {
    let row = R::TABLE.iter().find(|row| row.meets(found));
    row.unwrap_or_else(|| unreachable!("no row for {found:?}, though a test has tried every combination"))
}

/// A table as the documents show it.
pub fn markdown<R: Row>() -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let headings: Vec<String> = R::headings().iter().map(|heading| (*heading).to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(headings.len()));
    let rows = R::TABLE.iter().map(|row| line(&row.cells()));
    [line(&headings), rule].into_iter().chain(rows).collect()
}

/// What a row asks of a fact, in words: nothing, or one of some values.
pub(super) fn asked<F: Fact>(values: &[F]) -> String {
    values.iter().map(|value| value.words()).collect::<Vec<_>>().join(" / ")
}

/// Defines an enum of values and their words.
macro_rules! fact {
    ($(#[$doc:meta])* $fact:ident, $name:literal { $($value:ident = $words:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $fact {
            $(#[doc = $words] $value,)+
        }

        impl $crate::core::recovery::table::Fact for $fact {
            const NAME: &'static str = $name;
            const ALL: &'static [$fact] = &[$($fact::$value),+];

            fn words(self) -> &'static str {
                match self {
                    $($fact::$value => $words,)+
                }
            }
        }
    };
}

/// Defines `Found`, `Row` and the way from one to the other, given the facts and the action; the module has the
/// `TABLE`.
macro_rules! table {
    ($($field:ident: $fact:ty,)+ => $action:ty) => {
        /// One combination of what is found.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Found {
            $(#[doc = concat!("Of ", stringify!($fact), ", what is found.")] pub $field: $fact,)+
        }

        /// What is done about some combinations. No value of a fact means any.
        #[derive(Debug)]
        pub struct Row {
            $(#[doc = concat!("Of ", stringify!($fact), ", what is asked for.")] pub $field: &'static [$fact],)+
            /// What is done.
            pub action: $action,
            /// Why.
            pub why: &'static str,
        }

        impl Row {
            /// Asks for nothing yet.
            const fn then(action: $action, why: &'static str) -> Row {
                Row { $($field: &[],)+ action, why }
            }
        }

        impl Found {
            /// The row of the table that decides.
            pub fn decide(&self) -> &'static Row {
                $crate::core::recovery::table::decide(self)
            }
        }

        impl $crate::core::recovery::table::Row for Row {
            type Found = Found;
            const TABLE: &'static [Row] = TABLE;

            fn headings() -> Vec<&'static str> {
                use $crate::core::recovery::table::Fact as _;
                vec![$(<$fact>::NAME,)+ <$action>::NAME, "because"]
            }

            fn cells(&self) -> Vec<String> {
                use $crate::core::recovery::table::Fact as _;
                vec![
                    $($crate::core::recovery::table::asked(self.$field),)+
                    format!("**{}**", self.action.words()),
                    self.why.to_owned(),
                ]
            }

            fn meets(&self, found: &Found) -> bool {
                $((self.$field.is_empty() || self.$field.contains(&found.$field)))&&+
            }

            fn every() -> Vec<Found> {
                use $crate::core::recovery::table::Fact as _;
                let mut every = vec![Found { $($field: <$fact>::ALL[0],)+ }];
                $(every = every
                    .into_iter()
                    .flat_map(|found| <$fact>::ALL.iter().map(move |value| Found { $field: *value, ..found }))
                    .collect();)+
                every
            }
        }
    };
}

pub(super) use {fact, table};
