//! A TCP proxy that fails in a chosen way, a chosen number of times.
//!
//! It knows no protocol: a fault takes hold of a connection at the next bytes that the client sends
//! on it, or at the next that hold a given text. Afterwards it is an honest proxy again.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UnixStream},
    task::JoinHandle,
    time::{interval, sleep},
};
use tokio_postgres::config::Host;

/// How long the port stays closed for one [`Fault::Refuse`].
const REFUSED: Duration = Duration::from_millis(1_500);

/// Between two looks at whether the port is to be closed.
const LOOK: Duration = Duration::from_millis(20);

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;

const CHUNK_BYTES: usize = 16 * 1024;

/// How a connection fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens for a while.
    Refuse,
    /// The connection is reset before the request goes on.
    Reset,
    /// It is closed before the request goes on.
    Close,
    /// The request goes nowhere, and nothing ever comes back.
    Blackhole,
    /// Every answer comes so much later.
    Delay(Duration),
    /// The answer breaks off after so many bytes.
    Cut(usize),
    /// The request arrives, and its answer does not.
    LoseReply,
}

/// Where the proxy leads.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// A port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A running proxy. It ends when it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    serving: JoinHandle<()>,
}

struct Plan {
    upstream: Upstream,
    fault: Option<Fault>,
    /// What the request must hold.
    needle: &'static [u8],
    /// Times that are left.
    left: u32,
    struck: u32,
    is_closed: bool,
}

impl FaultProxy {
    /// Opens a proxy that is honest until it is told otherwise.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(upstream: Upstream) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let plan = Arc::new(Mutex::new(Plan {
            upstream,
            fault: None,
            needle: b"",
            left: 0,
            struck: 0,
            is_closed: false,
        }));
        let serving = tokio::spawn(serve(listener, address, Arc::clone(&plan)));
        Ok(Self {
            address,
            plan,
            serving,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Fails the next `times` connections whose client sends something that holds `needle`.
    pub fn strike(&self, fault: Fault, times: u32, needle: &'static [u8]) {
        let mut plan = lock(&self.plan);
        (plan.fault, plan.left, plan.needle) = (Some(fault), times, needle);
    }

    /// Leads elsewhere from the next connection on.
    pub fn lead_to(&self, upstream: Upstream) {
        lock(&self.plan).upstream = upstream;
    }

    /// Whether the port is closed, or is about to be.
    #[must_use]
    pub fn refuses(&self) -> bool {
        let plan = lock(&self.plan);
        plan.is_closed || plan.fault == Some(Fault::Refuse) && plan.left > 0
    }

    /// Connections that failed as they were told to.
    #[must_use]
    pub fn struck(&self) -> u32 {
        lock(&self.plan).struck
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Upstream {
    /// The server of a PostgreSQL URL.
    ///
    /// # Errors
    /// When the URL names no server.
    pub fn of_postgres(url: &str) -> Result<Self> {
        let config: tokio_postgres::Config = url.parse()?;
        let port = config.get_ports().first().copied().unwrap_or(5432);
        match config
            .get_hosts()
            .first()
            .context("the URL names no host")?
        {
            Host::Unix(folder) => Ok(Self::Unix(folder.join(format!(".s.PGSQL.{port}")))),
            Host::Tcp(host) => Ok(Self::Tcp(format!("{host}:{port}").parse()?)),
        }
    }

    /// The server of an `http://` URL with a literal address.
    ///
    /// # Errors
    /// When it has none.
    pub fn of_http(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("no http URL")?;
        let place = rest.split('/').next().unwrap_or(rest);
        Ok(Self::Tcp(place.parse()?))
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a fault, if one waits for this request.
fn take(plan: &Mutex<Plan>, request: &[u8]) -> Option<Fault> {
    let mut plan = lock(plan);
    let fault = plan
        .fault
        .filter(|fault| *fault != Fault::Refuse && plan.left > 0)?;
    let needle = plan.needle;
    let meant = needle.is_empty() || request.windows(needle.len()).any(|part| part == needle);
    if !meant {
        return None;
    }
    plan.left -= 1;
    plan.struck += 1;
    Some(fault)
}

fn closes(plan: &Mutex<Plan>) -> bool {
    let mut plan = lock(plan);
    let closes = plan.fault == Some(Fault::Refuse) && plan.left > 0;
    if closes {
        plan.left -= 1;
        plan.struck += 1;
        plan.is_closed = true;
    }
    closes
}

/// A failed accept has no test to tell: the client that waits for it will fail.
async fn serve(mut listener: TcpListener, address: SocketAddr, plan: Arc<Mutex<Plan>>) {
    // Its beat goes on while connections come: a wait that begins anew with each would never end.
    let mut looks = interval(LOOK);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    tokio::spawn(carry(client, Arc::clone(&plan)));
                }
            }
            _ = looks.tick() => {
                if closes(&plan) {
                    drop(listener);
                    listener = loop {
                        // Somebody may have been given the port in between: whoever waits for it says so.
                        match opened_later(address).await {
                            Ok(listener) => break listener,
                            Err(_) => sleep(LOOK).await,
                        }
                    };
                    lock(&plan).is_closed = false;
                }
            }
        }
    }
}

/// Meanwhile the port is bound, so that nobody else is given it.
async fn opened_later(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    sleep(REFUSED).await;
    socket.listen(BACKLOG)
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(upstream: &Upstream) -> io::Result<Box<dyn Stream>> {
    Ok(match upstream {
        Upstream::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Upstream::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// One connection. It ends with either side; then both are closed.
async fn carry(mut client: TcpStream, plan: Arc<Mutex<Plan>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let upstream = lock(&plan).upstream.clone();
    let mut server = connect(&upstream).await?;
    let (mut asked, mut said) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut fault = None;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let request = match read? {
                    0 => return Ok(()),
                    bytes => asked.get(..bytes).unwrap_or_default(),
                };
                fault = fault.or_else(|| take(&plan, request));
                match fault {
                    Some(Fault::Reset) => return client.set_zero_linger(),
                    Some(Fault::Close) => return Ok(()),
                    Some(Fault::Blackhole) => return swallow(client, asked).await,
                    Some(Fault::Refuse | Fault::Delay(_) | Fault::Cut(_) | Fault::LoseReply) | None => {
                        server.write_all(request).await?;
                    }
                }
            }
            read = server.read(&mut said) => {
                let mut reply = match read? {
                    0 => return Ok(()),
                    bytes => said.get(..bytes).unwrap_or_default(),
                };
                match &mut fault {
                    Some(Fault::LoseReply) => return Ok(()),
                    Some(Fault::Delay(delay)) => sleep(*delay).await,
                    Some(Fault::Cut(left)) => {
                        reply = reply.get(..*left).unwrap_or(reply);
                        *left -= reply.len();
                        if *left == 0 {
                            client.write_all(reply).await?;
                            return Ok(());
                        }
                    }
                    Some(Fault::Refuse | Fault::Reset | Fault::Close | Fault::Blackhole) | None => {}
                }
                client.write_all(reply).await?;
            }
        }
    }
}

/// Reads until the client gives up.
async fn swallow(mut client: TcpStream, mut chunk: Vec<u8>) -> io::Result<()> {
    while client.read(&mut chunk).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every ten bytes with `0123456789`.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 10];
                    while stream.read_exact(&mut request).await.is_ok() {
                        stream.write_all(b"0123456789").await.unwrap();
                    }
                });
            }
        });
        address
    }

    async fn ask(address: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"question 1").await?;
        let mut answer = vec![0; 10];
        let mut got = 0;
        while got < 10 {
            match stream.read(&mut answer[got..]).await? {
                0 => break,
                bytes => got += bytes,
            }
        }
        answer.truncate(got);
        Ok(answer)
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says_and_no_more_often() {
        let proxy = FaultProxy::open(Upstream::Tcp(echo().await)).await.unwrap();
        let address = proxy.address();
        assert_eq!(ask(address).await.unwrap(), b"0123456789");
        for (fault, expected) in [
            (Fault::Close, &b""[..]),
            (Fault::Cut(4), b"0123"),
            (Fault::LoseReply, b""),
            (Fault::Delay(Duration::from_millis(1)), b"0123456789"),
        ] {
            proxy.strike(fault, 1, b"");
            assert_eq!(ask(address).await.unwrap(), expected, "{fault:?}");
            assert_eq!(
                ask(address).await.unwrap(),
                b"0123456789",
                "after {fault:?}"
            );
        }
        proxy.strike(Fault::Reset, 1, b"");
        assert_eq!(
            ask(address).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        proxy.strike(Fault::Blackhole, 1, b"");
        let silent = tokio::time::timeout(Duration::from_millis(50), ask(address)).await;
        assert!(silent.is_err());
        assert_eq!(proxy.struck(), 6);
        proxy.strike(Fault::Close, 1, b"nobody says this");
        assert_eq!(ask(address).await.unwrap(), b"0123456789");
    }

    #[tokio::test]
    async fn a_closed_port_opens_again() {
        let proxy = FaultProxy::open(Upstream::Tcp(echo().await)).await.unwrap();
        proxy.strike(Fault::Refuse, 1, b"");
        let mut refused = false;
        for _ in 0..600 {
            match ask(proxy.address()).await {
                Err(error) => refused |= error.kind() == io::ErrorKind::ConnectionRefused,
                Ok(_) if refused => return,
                Ok(_) => {}
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it was refused: {refused}, and never taken again");
    }
}
