//! Where mail for the administrator goes, by Autotest's own settings.

use std::fmt;

use super::{
    check::{EMAIL, NOTIFICATION, Reader},
    finding::{Finding, Severity},
    names::shown,
    raw,
};

/// `[NOTIFICATION]` and `[EMAIL]`, as far as they are used. What is wrong there is never more than doubtful: no mount waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// `grid_admin_email`: addresses; without any, nobody is written to.
    pub grid_admin_email: Vec<String>,
    /// `notify_email_from`
    pub notify_email_from: Option<String>,
    /// Without one the machine's own `sendmail` has it.
    pub smtp_server: Option<String>,
    pub smtp_port: Option<u16>,
    pub smtp_user: Option<String>,
    /// Told nowhere.
    pub smtp_password: Option<Secret>,
}

/// A value that isn't shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a secret)")
    }
}

impl Reader<'_> {
    pub fn mail(&mut self) -> Mail {
        let before = self.findings.len();
        let mail = Mail {
            grid_admin_email: self.addresses("grid_admin_email"),
            notify_email_from: self.addresses("notify_email_from").pop(),
            smtp_server: self.host_doubted(EMAIL, "smtp_server"),
            smtp_port: self.port(),
            smtp_user: self.text(EMAIL, "smtp_user"),
            smtp_password: self.found(EMAIL, "smtp_password").map(|found| Secret(found.text)),
        };
        for finding in &mut self.findings[before..] {
            finding.severity = Severity::Warning;
        }
        mail
    }

    /// Parted as Autotest parts them: by commas, semicolons, colons and blanks.
    fn addresses(&mut self, key: &'static str) -> Vec<String> {
        let found = self.found(NOTIFICATION, key);
        let text = found.as_ref().map_or("", |found| &found.text);
        let parts = text.split(|c: char| ",;:".contains(c) || c.is_whitespace());
        let (good, bad): (Vec<&str>, Vec<&str>) =
            parts.filter(|part| !part.is_empty()).partition(|a| is_address(a));
        if let (Some(found), Some(bad)) = (&found, bad.first()) {
            let message = format!("{} in `{key}` is no mail address", shown(bad));
            let mend = "write addresses like admin@example.org, with commas between them";
            self.findings.push(Finding::warning("bad-address", Some(found.place.clone()), message, mend));
        }
        let good: Vec<String> = good.into_iter().map(str::to_owned).collect();
        self.note(NOTIFICATION, key, Some(good.join(", ")), found.as_ref());
        good
    }

    fn port(&mut self) -> Option<u16> {
        let key = "smtp_port";
        let found = self.found(EMAIL, key);
        let number = |text: &str| raw::integer(text).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        let port = found.as_ref().and_then(|found| number(&found.text));
        if let (Some(found), None) = (&found, port) {
            let message = format!("`{key}` is to be a port's number and is {}", shown(&found.text));
            let mend = "give a number from 1 to 65535, or leave it blank";
            self.findings.push(Finding::warning("bad-port", Some(found.place.clone()), message, mend));
        }
        self.note(EMAIL, key, Some(port.map(|port| port.to_string()).unwrap_or_default()), found.as_ref());
        port
    }
}

/// Of the plain kind; a name alone is a user of this machine.
fn is_address(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let (user, host) = text.split_once('@').unwrap_or((text, "localhost"));
    let fits = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain);
    fits(user) && fits(host) && !user.ends_with('.') && !host.ends_with('.') && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, examine_text};

    #[test]
    fn mail_goes_where_autotest_sends_its_own() {
        let text = "[NOTIFICATION]\ngrid_admin_email: a@example.org; root,b.c@d-e.org\nnotify_email_from: noreply@example.org\n\
                    [EMAIL]\nsmtp_server: mail\nsmtp_port: 2525\nsmtp_user: u\nsmtp_password: hidden\n";
        let config = Config::from_text(text, "h").expect("it is good");
        assert_eq!(config.mail.grid_admin_email, ["a@example.org", "root", "b.c@d-e.org"]);
        assert_eq!(config.mail.notify_email_from.as_deref(), Some("noreply@example.org"));
        assert_eq!((config.mail.smtp_server.as_deref(), config.mail.smtp_port), (Some("mail"), Some(2525)));
        assert_eq!(config.mail.smtp_password, Some(Secret("hidden".to_owned())));
        let told = examine_text(text.as_bytes(), None, Some("h"));
        let all =
            [crate::config::text(&told), crate::config::json(&told), crate::config::settings_text(&told)];
        assert!(all.iter().all(|text| text.contains("smtp_user") && !text.contains("hidden")), "{all:?}");
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn what_is_wrong_with_mail_stops_nothing() {
        let text = "[NOTIFICATION]\ngrid_admin_email: a@b.org, <x@y>, -oQ/tmp\n[EMAIL]\nsmtp_server: -x\nsmtp_port: many\nsmtp_password: 5%(\n";
        let told = examine_text(text.as_bytes(), None, Some("h"));
        let codes: Vec<_> = told.findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["bad-address", "bad-host", "bad-port", "interpolation"]);
        let config = told.into_config().expect("it is good enough");
        assert_eq!(config.mail, Mail { grid_admin_email: vec!["a@b.org".to_owned()], ..Mail::default() });
        let none = Config::from_text("[COMMON]\n", "h").expect("it is good");
        assert_eq!(none.mail, Mail::default());
    }
}
