//! What this test program logs, all of it, for tests that look for what must not be there.

use std::{
    io::{self, Write},
    sync::{Mutex, OnceLock, PoisonError},
};

static LINES: OnceLock<()> = OnceLock::new();
static TEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Kept;

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = TEXT.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps every line from now on, down to the clients' own.
pub(crate) fn keep() {
    LINES.get_or_init(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(|| Kept)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// All lines so far.
pub(crate) fn text() -> String {
    let text = TEXT.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&text).into_owned()
}
