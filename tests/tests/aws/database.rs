//! A PostgreSQL as a stack finds one: reached over TCP with a password, and its administrator may
//! create roles but is no superuser.

use std::{
    fs::{self, Permissions},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
};

use local::postgres::{Cluster, Options};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

pub(crate) const ADMIN: &str = "carillon_admin";
/// Signs that a URL or a statement would stumble over.
pub(crate) const ADMIN_PASSWORD: &str = "p\"@:/?%20 '\\x";
pub(crate) const NAME: &str = "carillon";

pub(crate) struct Database {
    pub(crate) port: u16,
    superuser_url: String,
    // Fields drop in this order: the server goes before its folder.
    _cluster: Cluster,
    _folder: TempDir,
}

impl Database {
    /// A server with an empty database and none of our roles.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("carillon-aws-")
            .tempdir()
            .unwrap();
        // PostgreSQL's user must be able to go there when we are root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let rules = folder.path().join("hba.conf");
        // The socket's folder lets nobody in but us.
        fs::write(
            &rules,
            "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
        )
        .unwrap();
        let port = free_port();
        let options = Options {
            data_dir: folder.path().join("postgres"),
            durable: false,
            settings: vec![
                ("listen_addresses", "127.0.0.1".to_owned()),
                ("port", port.to_string()),
                ("hba_file", rules.display().to_string()),
            ],
        };
        let cluster = Cluster::start(options).await.unwrap();
        let url = cluster.superuser_url();
        let (server, database) = url.rsplit_once('/').unwrap();
        let made = Self {
            port,
            superuser_url: format!("{server}:{port}/{database}"),
            _cluster: cluster,
            _folder: folder,
        };
        made.prepare().await;
        made
    }

    async fn prepare(&self) {
        let superuser = tests::connect(&self.superuser_url).await.unwrap();
        let sql =
            "SELECT format('CREATE ROLE %I LOGIN CREATEROLE PASSWORD %L', $1::text, $2::text)";
        let row = superuser
            .query_one(sql, &[&ADMIN, &ADMIN_PASSWORD])
            .await
            .unwrap();
        superuser.batch_execute(row.get(0)).await.unwrap();
        let sql = format!("CREATE DATABASE {NAME} OWNER {ADMIN}");
        superuser.batch_execute(&sql).await.unwrap();
    }

    /// Who sees past every wall.
    pub(crate) async fn superuser(&self) -> Client {
        let (server, _) = self.superuser_url.rsplit_once('/').unwrap();
        tests::connect(&format!("{server}/{NAME}")).await.unwrap()
    }

    /// Whether this password opens the database for this role.
    pub(crate) async fn admits(&self, role: &str, password: &str) -> bool {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .dbname(NAME)
            .user(role)
            .password(password);
        config.connect(NoTls).await.is_ok()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
