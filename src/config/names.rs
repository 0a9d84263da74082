//! Names and other single values: which are fit to be handed to ssh, how a wrong one is shown, and what its
//! mend is.

use std::net;

use crate::limits;

/// The key of a host's special variable.
pub fn special(host: &str, suffix: &str) -> String {
    format!("{}{suffix}", host.to_ascii_lowercase())
}

/// `localhost`, which in Autotest means that nothing is copied.
pub fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// Whether the whole text is in quotes, which ConfigParser keeps.
pub fn is_quoted(text: &str) -> bool {
    text.len() > 1 && ['"', '\''].iter().any(|q| text.starts_with(*q) && text.ends_with(*q))
}

/// In backquotes, with what can't be seen made visible, and not too long.
pub fn shown(text: &str) -> String {
    let visible: String = text.chars().take(80).flat_map(visible).collect();
    if text.chars().count() > 80 { format!("`{visible}…`") } else { format!("`{visible}`") }
}

fn visible(c: char) -> Vec<char> {
    match c {
        ' '..='~' => vec![c],
        _ if c.is_alphanumeric() => vec![c],
        _ => c.escape_default().collect(),
    }
}

/// Mistakes that any value can have.
pub fn mend_text(text: &str) -> Option<&'static str> {
    if text.contains('\n') {
        Some(
            "begin the line below it in the first column, or remove it: an indented line belongs to the value above",
        )
    } else if text.ends_with("**") {
        Some("remove the `**`: in the manual it marks the line and is no part of the value")
    } else if is_quoted(text) {
        Some("remove the quotes: they count as part of the value")
    } else if text.contains(" #") || text.starts_with('#') {
        Some("remove the comment, or begin it with ` ;`: a `#` begins one in the first column only")
    } else if text.contains(';') {
        Some("put a blank before the `;`, or else it begins no comment")
    } else if text.chars().any(|c| c.is_control() || (!c.is_ascii() && !c.is_alphanumeric())) {
        Some("type the value again instead of pasting it: it has characters that can't be seen")
    } else {
        None
    }
}

/// Mistakes with numbers: units, points.
pub fn mend_number(key: &str, text: &str) -> String {
    if let Some(mend) = mend_text(text) {
        return mend.to_owned();
    }
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = key.rsplit('_').next().unwrap_or(key);
    match digits.is_empty() || text.contains(['.', ',']) {
        true => "write it in digits, without a point".to_owned(),
        false => format!("write `{key}: {digits}`; if a unit is in the name it is fixed (here: {unit})"),
    }
}

/// Whether ssh can be given `name` as a host; or what is wrong, and the mend.
pub fn host_name(key: &str, name: &str) -> Result<(), (String, String)> {
    let fault =
        |mend: &str| Err((format!("`{key}` is {}, which is no host name", shown(name)), mend.to_owned()));
    if name.starts_with('-') {
        return fault("give a name that doesn't begin with `-`: ssh would take it for an option");
    }
    if let Some(mend) = mend_text(name) {
        return fault(mend);
    }
    if let Some((user, host)) = name.split_once('@') {
        return fault(&format!("write `{key}: {host}`, and `{host}_username: {user}` in [SCHEDULER]"));
    }
    if is_address(name) {
        return Ok(());
    }
    if let Some((host, port)) = name.split_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return fault(&format!("write `{key}: {host}`, and `ssh_command: ssh -p {port}` in [RESULTSFS]"));
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > limits::TEXT_BYTES || !name.bytes().all(good) {
        return fault("give one host's name or address");
    }
    Ok(())
}

fn is_address(name: &str) -> bool {
    let (address, zone) = name.split_once('%').unwrap_or((name, "0"));
    address.parse::<net::Ipv6Addr>().is_ok() && zone.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether ssh can be given `name` as a user; or what is wrong, and the mend. Domain accounts have `@`, `\`
/// or `+` in them.
pub fn user_name(key: &str, name: &str) -> Result<(), (String, String)> {
    let fault =
        |mend: &str| Err((format!("`{key}` is {}, which is no user name", shown(name)), mend.to_owned()));
    if name.starts_with('-') {
        return fault("give a name that doesn't begin with `-`: ssh would take it for an option");
    }
    if let Some(mend) = mend_text(name) {
        return fault(mend);
    }
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '@' | '\\' | '+');
    if name.len() > limits::TEXT_BYTES || !name.chars().all(good) || name.ends_with('\\') {
        return fault("give the name of an account on that host");
    }
    Ok(())
}
