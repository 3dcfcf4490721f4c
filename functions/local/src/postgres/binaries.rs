//! Where `postgres` and `initdb` are.
//!
//! Nothing is installed here: that is the work of `./dev`.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PostgresError, reachable};
use crate::child::User;

/// The oldest major version whose SQL we use.
const MAJOR_MIN: u32 = 15;
const DEBIAN_ROOT: &str = "/usr/lib/postgresql";

/// Where to look.
#[derive(Debug)]
pub(super) struct Search {
    /// The only folder to look into, when the user names one.
    pub(super) only: Option<PathBuf>,
    pub(super) path: Option<OsString>,
    pub(super) debian_root: PathBuf,
    /// Where `./dev` keeps what it installs.
    pub(super) cache: Option<PathBuf>,
}

impl Search {
    pub(super) fn from_env() -> Self {
        Self {
            only: env::var_os("CARILLON_POSTGRES_BIN").map(PathBuf::from),
            path: env::var_os("PATH"),
            debian_root: PathBuf::from(DEBIAN_ROOT),
            cache: cache_dir(),
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        if let Some(only) = &self.only {
            return vec![only.clone()];
        }
        let on_path = self.path.iter().flat_map(env::split_paths);
        // A link on the PATH leads to the installation, whose other files lie beside its target.
        let on_path = on_path.filter_map(|dir| fs::canonicalize(dir.join("postgres")).ok());
        let mut folders: Vec<PathBuf> = on_path
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        folders.extend(debian_folders(&self.debian_root));
        let package = format!("@embedded-postgres/linux-{}", npm_architecture());
        folders.extend(self.cache.iter().map(|cache| {
            cache
                .join("postgres/node_modules")
                .join(&package)
                .join("native/bin")
        }));
        folders
    }
}

/// The programs of one installation.
#[derive(Debug)]
pub(super) struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }
}

/// The first installation that `user` may run, of major version `wanted`, or of any that is new
/// enough.
pub(super) fn find(
    search: &Search,
    wanted: Option<u32>,
    user: Option<User>,
) -> Result<Binaries, PostgresError> {
    let mut looked = BTreeSet::new();
    for folder in search.folders() {
        match unfit(&folder, wanted, user) {
            None => return Ok(Binaries { folder }),
            Some(reason) => looked.insert(format!("{}: {reason}", folder.display())),
        };
    }
    Err(PostgresError::NotFound {
        wanted: match wanted {
            Some(major) => format!("{major}, which the data folder was made with"),
            None => format!("{MAJOR_MIN} or newer"),
        },
        looked: if looked.is_empty() {
            format!("nothing on PATH or in {}", search.debian_root.display())
        } else {
            looked.into_iter().collect::<Vec<_>>().join("; ")
        },
    })
}

fn unfit(folder: &Path, wanted: Option<u32>, user: Option<User>) -> Option<String> {
    for program in ["postgres", "initdb"] {
        let file = folder.join(program);
        if !file.is_file() {
            return Some(format!("has no {program}"));
        }
        if !reachable(&file, user) {
            return Some(
                "the user nobody may not go there, and postgres never runs as root".into(),
            );
        }
    }
    match (major_version(&folder.join("postgres")), wanted) {
        (None, _) => Some("`postgres --version` does not work".into()),
        (Some(major), Some(wanted)) if major != wanted => Some(format!("is version {major}")),
        (Some(major), _) if major < MAJOR_MIN => Some(format!("is version {major}")),
        (Some(_), _) => None,
    }
}

fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // For example `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `… 18beta1`.
    let number = text.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|c: char| !c.is_ascii_digit())?;
    number[..digits].parse().ok()
}

fn debian_folders(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut majors: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors
        .into_iter()
        .map(|major| root.join(major.to_string()).join("bin"))
        .collect()
}

/// The same rule as in `./dev`: root's home is closed to the user that runs PostgreSQL.
fn cache_dir() -> Option<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = from("CARILLON_CACHE") {
        return Some(PathBuf::from(cache));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/cache/carillon"));
    }
    let user_cache = from("XDG_CACHE_HOME").map(PathBuf::from);
    let user_cache = user_cache.or_else(|| Some(PathBuf::from(from("HOME")?).join(".cache")));
    user_cache.map(|dir| dir.join("carillon"))
}

fn npm_architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}
