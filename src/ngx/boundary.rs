//! No panic reaches C: nginx's callbacks run inside [`guarded`].

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; if it panics, the message goes to standard error, which nginx sends to its error
/// log, and `failed` is what nginx gets.
pub fn guarded<T>(failed: T, body: impl FnOnce() -> T) -> T {
    // What a panic may leave half done belongs to one request or to the process's own copy of a
    // list; shared memory is written by stores that leave it whole after each.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(failed)
}
