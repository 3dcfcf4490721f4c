//! Hands finished messages to a mail server, or to a folder that stands for one.
//!
//! A message goes to all its recipients in one go or to none. SMTP cannot tell whether a message was
//! taken when the connection breaks after it; that case has an error of its own.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use lettre::{
    Address,
    message::Mailbox,
    transport::smtp::{
        Error as SmtpError,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::ClientId,
    },
};
use percent_encoding::percent_decode_str;
use shared::{destination::EmailAddress, mail_tags::MailTags, secret::Secret};
use tokio::time::timeout;
use url::Url;

use super::{
    Answer, Cause, DeliveryError, Sent, Ses, excerpt,
    file::{self, Draft},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ENVELOPE_TIMEOUT: Duration = Duration::from_secs(30);
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(40);
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where emails leave.
#[derive(Debug)]
pub enum Mailer {
    /// Each message becomes a file `<delivery id>.eml`.
    Directory {
        /// The folder; it is made when it is missing.
        path: PathBuf,
    },
    /// A mail server.
    Smtp(Smtp),
    /// Amazon SES.
    Ses(Ses),
}

/// A mail server and how to speak to it.
pub struct Smtp {
    host: String,
    port: u16,
    encryption: Encryption,
    login: Option<(Secret, Secret)>,
    sender: Address,
}

enum Encryption {
    /// Only for a server on this machine.
    None,
    StartTls(TlsParameters),
    FromTheStart(TlsParameters),
}

/// Why the address of a mail server cannot be used. The address itself may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SmtpUrlError {
    /// Not `smtp://` or `smtps://` and a host.
    #[error("not the URL of a mail server; send smtps://user:password@host or smtp://host:587")]
    Malformed,
    /// The system's certificates cannot be loaded.
    #[error("cannot prepare TLS for the mail server")]
    Tls(#[source] SmtpError),
}

impl Mailer {
    pub(super) async fn send(
        &self,
        tags: &MailTags,
        recipients: &[EmailAddress],
        message: Bytes,
    ) -> Result<Sent, DeliveryError> {
        match self {
            Self::Directory { path } => {
                let file = path.join(format!("{}.eml", tags.delivery_id));
                let location = Some(file.display().to_string());
                let folder = path.clone();
                file::work(move || Draft::write(&folder, &message)?.replace(&file)).await?;
                Ok(Sent {
                    location,
                    ..Sent::default()
                })
            }
            Self::Smtp(smtp) => {
                let recipients = recipients
                    .iter()
                    .map(|recipient| recipient.as_str().parse())
                    .collect::<Result<Vec<Address>, _>>()
                    .map_err(|_error| DeliveryError::InvalidTarget)?;
                smtp.send(&recipients, &message).await?;
                Ok(Sent::default())
            }
            Self::Ses(ses) => ses.send(tags, recipients, message).await,
        }
    }
}

impl Smtp {
    /// Reads `smtps://user:password@host:465` (TLS from the start) or `smtp://…:587` (STARTTLS,
    /// which is demanded unless the host is this machine). User and password are percent-encoded.
    ///
    /// # Errors
    ///
    /// [`SmtpUrlError`].
    pub fn from_url(url: &Secret, from: &Mailbox) -> Result<Self, SmtpUrlError> {
        let url = Url::parse(url.expose()).map_err(|_error| SmtpUrlError::Malformed)?;
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or(SmtpUrlError::Malformed)?
            .trim_matches(['[', ']'])
            .to_owned();
        let tls = || TlsParameters::new(host.clone()).map_err(SmtpUrlError::Tls);
        let (encryption, port) = match url.scheme() {
            "smtps" => (Encryption::FromTheStart(tls()?), 465),
            "smtp" if is_loopback(&host) => (Encryption::None, 25),
            "smtp" => (Encryption::StartTls(tls()?), 587),
            _ => return Err(SmtpUrlError::Malformed),
        };
        let decoded = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(Secret::new(text)),
            Err(_invalid) => Err(SmtpUrlError::Malformed),
        };
        let login = match url.password() {
            Some(password) => Some((decoded(url.username())?, decoded(password)?)),
            None => None,
        };
        Ok(Self {
            port: url.port().unwrap_or(port),
            host,
            encryption,
            login,
            sender: from.email.clone(),
        })
    }

    async fn send(&self, recipients: &[Address], message: &[u8]) -> Result<(), DeliveryError> {
        let mut connection = timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .map_err(|_elapsed| DeliveryError::MailUnreachable(None))?
            .map_err(|error| DeliveryError::MailUnreachable(Some(Box::new(error))))?;
        timeout(ENVELOPE_TIMEOUT, self.announce(&mut connection, recipients))
            .await
            .map_err(|_elapsed| DeliveryError::MailUnreachable(None))?
            .map_err(|error| refused(error, DeliveryError::MailUnreachable))?;
        // From here on the server may have taken the message, whatever becomes of the connection.
        timeout(MESSAGE_TIMEOUT, connection.message(message))
            .await
            .map_err(|_elapsed| DeliveryError::MailOutcomeUnknown(None))?
            .map_err(|error| refused(error, DeliveryError::MailOutcomeUnknown))?;
        // The message is taken; how the connection ends does not matter.
        let _ = timeout(QUIT_TIMEOUT, connection.quit()).await;
        Ok(())
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, SmtpError> {
        let me = ClientId::default();
        let from_the_start = match &self.encryption {
            Encryption::FromTheStart(tls) => Some(tls.clone()),
            Encryption::None | Encryption::StartTls(_) => None,
        };
        let mut connection = AsyncSmtpConnection::connect_tokio1(
            (self.host.as_str(), self.port),
            Some(CONNECT_TIMEOUT),
            &me,
            from_the_start,
            None,
        )
        .await?;
        if let Encryption::StartTls(tls) = &self.encryption {
            connection.starttls(tls.clone(), &me).await?;
        }
        if let Some((user, password)) = &self.login {
            let login = Credentials::new(user.expose().to_owned(), password.expose().to_owned());
            connection
                .auth(&[Mechanism::Plain, Mechanism::Login], &login)
                .await?;
        }
        Ok(connection)
    }

    /// Everything up to the server's leave to send the message itself.
    async fn announce(
        &self,
        connection: &mut AsyncSmtpConnection,
        recipients: &[Address],
    ) -> Result<(), SmtpError> {
        let from = Mail::new(Some(self.sender.clone()), Vec::new());
        connection.command(from).await?;
        for recipient in recipients {
            let to = Rcpt::new(recipient.clone(), Vec::new());
            connection.command(to).await?;
        }
        connection.command(Data).await?;
        Ok(())
    }
}

impl fmt::Debug for Smtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smtp")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A reply decides; anything else is what the phase makes of it.
fn refused(error: SmtpError, broken: fn(Option<Cause>) -> DeliveryError) -> DeliveryError {
    let Some(status) = error.status() else {
        return broken(Some(Box::new(error)));
    };
    let said = std::error::Error::source(&error).map(ToString::to_string);
    let answer = Answer {
        status: status.into(),
        excerpt: excerpt(said.unwrap_or_default().as_bytes()),
    };
    if error.is_permanent() {
        DeliveryError::MailRefused(answer)
    } else {
        DeliveryError::MailDeferred(answer)
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        thread::{self, JoinHandle},
    };

    use shared::ids::{DeliveryId, PromptId, RunId, TenantId};

    use super::*;

    fn tags(delivery_id: DeliveryId) -> MailTags {
        MailTags {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
            run_id: RunId::new(),
            delivery_id,
        }
    }

    /// A mail server that gives its replies one by one, to each line or to the message, and hangs
    /// up when it has none left. It returns what it was told.
    fn server(replies: &'static [&'static str]) -> (u16, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut told = Vec::new();
            let mut in_message = false;
            for reply in replies {
                stream.write_all(reply.as_bytes()).unwrap();
                stream.write_all(b"\r\n").unwrap();
                in_message |= reply.starts_with("354");
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return told;
                    }
                    let end = !in_message || line == ".\r\n";
                    told.push(line.trim_end().to_owned());
                    if end {
                        in_message = false;
                        break;
                    }
                }
            }
            told
        });
        (port, told)
    }

    fn smtp(url: &str) -> Result<Smtp, SmtpUrlError> {
        let from = "Carillon <from@example.com>".parse().unwrap();
        Smtp::from_url(&Secret::new(url), &from)
    }

    async fn send(replies: &'static [&'static str]) -> (Result<Sent, DeliveryError>, Vec<String>) {
        let (port, told) = server(replies);
        let mailer = Mailer::Smtp(smtp(&format!("smtp://127.0.0.1:{port}")).unwrap());
        let to = ["a@example.com", "b@example.com"].map(|to| EmailAddress::parse(to).unwrap());
        let message = Bytes::from_static(b"Subject: x\r\n\r\n.dot\r\nend\r\n");
        let sent = mailer.send(&tags(DeliveryId::new()), &to, message).await;
        drop(mailer);
        (sent, told.join().unwrap())
    }

    #[tokio::test]
    async fn a_message_goes_to_all_recipients_at_once() {
        let replies = &[
            "220 hi",
            "250 me",
            "250 ok",
            "250 ok",
            "250 ok",
            "354 go",
            "250 taken",
            "221 bye",
        ];
        let (sent, told) = send(replies).await;
        assert_eq!(sent.unwrap(), Sent::default());
        let told: Vec<_> = told.iter().map(String::as_str).skip(1).collect();
        assert_eq!(
            told,
            [
                "MAIL FROM:<from@example.com>",
                "RCPT TO:<a@example.com>",
                "RCPT TO:<b@example.com>",
                "DATA",
                "Subject: x",
                "",
                "..dot",
                "end",
                "",
                ".",
                "QUIT",
            ]
        );
    }

    #[tokio::test]
    async fn each_way_to_fail_says_whether_the_mail_may_have_gone_out() {
        let cases: [(&'static [&'static str], &str, bool); 9] = [
            (&[], "mail_unreachable", false),
            (&["554 go away"], "mail_unreachable", false),
            (&["220 hi"], "mail_unreachable", false),
            (&["220 hi", "250 me", "451 later"], "mail_deferred", false),
            (
                &[
                    "220 hi",
                    "250 me",
                    "250 ok",
                    "250 ok",
                    "550 nobody\x07 here",
                ],
                "mail_refused",
                false,
            ),
            (
                &["220 hi", "250 me", "250 ok", "250 ok", "250 ok"],
                "mail_unreachable",
                false,
            ),
            (
                &["220 hi", "250 me", "250 ok", "250 ok", "250 ok", "354 go"],
                "mail_outcome_unknown",
                true,
            ),
            (
                &[
                    "220 hi", "250 me", "250 ok", "250 ok", "250 ok", "354 go", "452 full",
                ],
                "mail_deferred",
                false,
            ),
            (
                &[
                    "220 hi", "250 me", "250 ok", "250 ok", "250 ok", "354 go", "554 spam",
                ],
                "mail_refused",
                false,
            ),
        ];
        for (replies, code, unknown) in cases {
            let (sent, _) = send(replies).await;
            let error = sent.unwrap_err();
            assert_eq!(
                (error.code(), error.outcome_unknown()),
                (code, unknown),
                "{replies:?}"
            );
            if code == "mail_refused" && replies.len() == 5 {
                let answer = error.answer().unwrap();
                assert_eq!(
                    (answer.status, answer.excerpt.as_str()),
                    (550, "nobody  here")
                );
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_after_taking_the_message_has_taken_it() {
        let replies = &[
            "220 hi",
            "250 me",
            "250 ok",
            "250 ok",
            "250 ok",
            "354 go",
            "250 taken",
        ];
        assert!(send(replies).await.0.is_ok());
    }

    #[tokio::test]
    async fn a_closed_port_took_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mailer = Mailer::Smtp(smtp(&format!("smtp://127.0.0.1:{port}")).unwrap());
        let to = [EmailAddress::parse("a@example.com").unwrap()];
        let error = mailer
            .send(&tags(DeliveryId::new()), &to, Bytes::new())
            .await
            .unwrap_err();
        assert_eq!(
            (error.code(), error.outcome_unknown()),
            ("mail_unreachable", false)
        );
    }

    #[tokio::test]
    async fn a_repeated_attempt_leaves_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let mailer = Mailer::Directory {
            path: folder.path().join("outbox"),
        };
        let id = DeliveryId::new();
        let to = [EmailAddress::parse("a@example.com").unwrap()];
        for _ in 0..2 {
            let message = Bytes::from_static(b"Subject: x\r\n\r\nhello\r\n");
            let sent = mailer.send(&tags(id), &to, message).await.unwrap();
            let path = folder.path().join("outbox").join(format!("{id}.eml"));
            assert_eq!(sent.location, Some(path.display().to_string()));
            assert_eq!(fs::read(path).unwrap(), b"Subject: x\r\n\r\nhello\r\n");
        }
        assert_eq!(
            fs::read_dir(folder.path().join("outbox")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_password_travels_only_encrypted_and_is_never_printed() {
        let server = smtp("smtp://me%40example.com:p%3Ass@mail.example.com").unwrap();
        assert!(matches!(server.encryption, Encryption::StartTls(_)));
        assert_eq!(server.port, 587);
        let (user, password) = server.login.as_ref().unwrap();
        assert_eq!(
            (user.expose(), password.expose()),
            ("me@example.com", "p:ss")
        );
        assert!(!format!("{server:?}").contains("p:ss"));

        let server = smtp("smtps://mail.example.com").unwrap();
        assert!(matches!(server.encryption, Encryption::FromTheStart(_)));
        assert_eq!(server.port, 465);
        for local in [
            "smtp://localhost:2525",
            "smtp://127.0.0.1:2525",
            "smtp://[::1]:2525",
        ] {
            let server = smtp(local).unwrap();
            assert!(matches!(server.encryption, Encryption::None));
            assert_eq!(server.port, 2525);
        }
        for other in [
            "",
            "mail.example.com",
            "https://mail.example.com",
            "smtp://",
        ] {
            assert!(
                matches!(smtp(other), Err(SmtpUrlError::Malformed)),
                "{other}"
            );
        }
    }
}
