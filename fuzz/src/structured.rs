//! Structured inputs that can be made of any bytes, and written as bytes again.
//!
//! `arbitrary`'s own derive only reads. Seeds are made by hand as values, so they must be written too; and one byte is
//! enough to tell variants apart, which leaves a mutation less to hit.

use arbitrary::{Arbitrary, Unstructured};

/// Writes the bytes that [`Arbitrary::arbitrary`] makes the value of.
pub trait Encode {
    /// Appends the value's bytes.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! encode_numbers {
    ($($number:ty),*) => {
        $(impl Encode for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })*
    };
}

encode_numbers!(u8, u16, u32, u64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }
}

/// A list of any length, which ends with the input at the latest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List<T>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for List<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<List<T>> {
        let mut items = Vec::new();
        while !u.is_empty() && bool::arbitrary(u)? {
            items.push(T::arbitrary(u)?);
        }
        Ok(List(items))
    }
}

impl<T: Encode> Encode for List<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        for item in &self.0 {
            out.push(1);
            item.encode(out);
        }
        out.push(0);
    }
}

/// Declares enums and structs that implement [`Arbitrary`] and [`Encode`]; whoever uses it imports both, and
/// [`Unstructured`].
macro_rules! structured {
    ($(#[$meta:meta])* struct $name:ident {
        $($(#[$note:meta])* $field:ident: $type:ty),* $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$note])* pub $field: $type),* }

        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<$name> {
                Ok($name { $($field: Arbitrary::arbitrary(u)?),* })
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }

        structured! { $($rest)* }
    };
    ($(#[$meta:meta])* enum $name:ident {
        $($(#[$note:meta])* $variant:ident $({ $($field:ident: $type:ty),* $(,)? })?),* $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$note])* $variant $({ $($field: $type),* })?),* }

        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<$name> {
                let variants = [$(stringify!($variant)),*].len();
                let mut tag = usize::from(u8::arbitrary(u)?) % variants;
                $(
                    if tag == 0 {
                        return Ok($name::$variant $({ $($field: Arbitrary::arbitrary(u)?),* })?);
                    }
                    tag -= 1;
                )*
                unreachable!("variant {tag} of {variants}")
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                let mut tag = 0u8;
                $(
                    if let $name::$variant $({ $($field),* })? = self {
                        out.push(tag);
                        $($($field.encode(out);)*)?
                        return;
                    }
                    tag += 1;
                )*
                unreachable!("one of the {tag} variants")
            }
        }

        structured! { $($rest)* }
    };
    () => {};
}
