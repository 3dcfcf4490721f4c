//! Takes the files that the page at `/docs` loads out of the archive of Swagger UI: a tenth of what
//! is in there. Nothing is downloaded.

use std::{
    env,
    fs::{self, File},
    io::{Cursor, Read, Result, Write},
    path::PathBuf,
};

use flate2::{Compression, GzBuilder};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

const PLAIN: [&str; 5] = [
    "index.html",
    "index.css",
    "swagger-ui.css",
    "favicon-16x16.png",
    "favicon-32x32.png",
];

/// Large, and smaller by three quarters when they are compressed.
const COMPRESSED: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for name in PLAIN {
        fs::write(folder.join(name), file(&mut archive, name)?)?;
    }
    for name in COMPRESSED {
        let bytes = file(&mut archive, name)?;
        let to = File::create(folder.join(format!("{name}.gz")))?;
        let mut encoder = GzBuilder::new().write(to, Compression::best());
        encoder.write_all(&bytes)?;
        encoder.finish()?;
    }
    Ok(())
}

/// The archive's one folder has the version in its name.
fn file(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<Vec<u8>> {
    let end = format!("/dist/{name}");
    let found = archive
        .file_names()
        .flatten()
        .find(|path| path.ends_with(&end))
        .map(String::from);
    let path = found.unwrap_or(end);
    let mut bytes = Vec::new();
    archive.by_name(&path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
