//! Every bound in one place, with the relations between them checked at compile time.
