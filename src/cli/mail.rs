//! Mail, by the site's server or this machine's own `sendmail`.

use std::time::Duration;

use lettre::{
    Message, SendmailTransport, SmtpTransport, Transport,
    message::{Mailbox, header::ContentType},
    transport::smtp::authentication::Credentials,
};

use crate::config::{Mail, Secret};

/// How long a server may take for each of its words.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is written; to whom, the settings say.
pub struct Letter {
    pub subject: String,
    pub text: String,
}

/// To each by a letter of his own, so that an address that is refused keeps nobody else's. Without encryption, as Autotest speaks to the server: whoever wants that has a `sendmail`
/// that does it. Returns what went wrong.
pub fn send(mail: &Mail, host: &str, letter: &Letter) -> Vec<String> {
    let each = mail.grid_admin_email.iter();
    each.filter_map(|to| send_to(to, mail, host, letter).err().map(|error| format!("{to}: {error}")))
        .collect()
}

fn send_to(to: &str, mail: &Mail, host: &str, letter: &Letter) -> Result<(), String> {
    let message = message(to, mail, host, letter)?;
    let Some(server) = &mail.smtp_server else {
        return SendmailTransport::new().send(&message).map_err(|error| chain(&error));
    };
    let mut transport = SmtpTransport::builder_dangerous(server).timeout(Some(PATIENCE));
    if let Some(port) = mail.smtp_port {
        transport = transport.port(port);
    }
    if let Some(user) = &mail.smtp_user {
        let Secret(password) = mail.smtp_password.clone().unwrap_or(Secret(String::new()));
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    transport.build().send(&message).map(drop).map_err(|error| chain(&error))
}

fn message(to: &str, mail: &Mail, host: &str, letter: &Letter) -> Result<Message, String> {
    let mailbox = |address: &str| -> Result<Mailbox, String> {
        let full = if address.contains('@') { address.to_owned() } else { format!("{address}@localhost") };
        full.parse().map_err(|error| format!("{address}: {error}"))
    };
    let from = match &mail.notify_email_from {
        Some(from) => mailbox(from)?,
        // Not every name that a host may have fits into an address.
        None => mailbox(&format!("resultsfs@{host}")).or_else(|_| mailbox("resultsfs"))?,
    };
    let message = Message::builder().from(from).to(mailbox(to)?).subject(&letter.subject);
    message.header(ContentType::TEXT_PLAIN).body(letter.text.clone()).map_err(|error| error.to_string())
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        said.push_str(&format!(": {error}"));
        source = error.source();
    }
    said
}
