//! What our programs wrote in any test, kept until all tests are over.
//!
//! `./dev test` names the folder, and looks afterwards for the words of `tests/unspeakable.txt`.

use std::{env, fs, io, path::Path};

use uuid::Uuid;

/// Keeps a log's bytes, those to come too, when its own folder is gone.
///
/// # Errors
/// When the folder is on another file system.
pub fn keep(log: &Path) -> io::Result<()> {
    let Some(folder) = env::var_os("CARILLON_TEST_LOGS") else {
        return Ok(());
    };
    let name = format!("{}.log", Uuid::new_v4().simple());
    fs::hard_link(log, Path::new(&folder).join(name))
}
