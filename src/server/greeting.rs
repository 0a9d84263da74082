//! The beginning of a session: Hello is checked, Welcome made.

use std::{sync::Arc, time::Duration};

use tokio::{io::AsyncRead, time::timeout};

use super::{
    Identity, Server,
    api::on_store,
    end::{SessionEnd, protocol, store_failed},
    hosts::Present,
    places::{Place, Share},
};
use crate::{
    limits,
    wire::{
        Hello, PROTOCOL_VERSION, RefusalCode, ToStore, Welcome,
        frame::{Frame, FrameReader},
        rights::Rights,
    },
};

fn identity(why: String) -> SessionEnd {
    SessionEnd::Refused(RefusalCode::Identity, why)
}

/// A host that is let in, for as long as this lives.
pub(super) struct Greeted {
    pub(super) hello: Hello,
    pub(super) place: Place,
    pub(super) share: Arc<Share>,
    /// That its name is taken, for as long.
    pub(super) present: Present,
}

/// Finds a place, reads Hello and checks who that is.
pub(super) async fn greet<R: AsyncRead + Unpin>(
    server: &Arc<Server>,
    reader: &mut FrameReader<R>,
    identity: &Identity,
) -> Result<Greeted, SessionEnd> {
    let place = server.places.enter(identity.pinned_name.as_deref())?;
    let (hello, present) = tokio::select! {
        greeted = hear(server, reader, identity) => greeted?,
        crowded = place.overtaken() => return Err(crowded.into()),
    };
    let share = place.greeted(&hello.host_name)?;
    Ok(Greeted { hello, place, share, present })
}

/// The one word in the log on a session that wasn't welcome. Whoever comes again and again with too many doesn't fill the log.
pub(super) fn log_ungreeted(server: &Server, identity: &Identity, end: &SessionEnd) {
    let key = identity.pinned_name.as_deref().unwrap_or("any host");
    match end {
        SessionEnd::Refused(RefusalCode::Busy, why) => {
            if let Some(more) = server.places.may_tell(key) {
                tracing::warn!(key, before = more, "refused a session: {why}");
            }
        }
        SessionEnd::Refused(code, why) => tracing::warn!(key, ?code, "refused a session: {why}"),
        SessionEnd::Broken(why) => tracing::info!(key, "a session ended before it was greeted: {why}"),
        // Who only looks whether somebody is there.
        SessionEnd::Closed | SessionEnd::Stopped => {}
    }
}

/// Reads Hello and checks who that is.
async fn hear<R: AsyncRead + Unpin>(
    server: &Arc<Server>,
    reader: &mut FrameReader<R>,
    who: &Identity,
) -> Result<(Hello, Present), SessionEnd> {
    let frame = match timeout(Duration::from_millis(limits::GREETING_TIMEOUT_MS), reader.next()).await {
        Ok(frame) => frame?.ok_or(SessionEnd::Closed)?,
        Err(_) => {
            return Err(protocol(format!("no Hello in {} s", limits::GREETING_TIMEOUT_MS / 1000)));
        }
    };
    let hello = parse(&frame)?;
    check_name(&hello, who)?;
    check_history(server, &hello, who).await?;
    let present = server.live.enter(&hello.host_name, hello.host).map_err(|other| {
        identity(format!(
            "another host named `{}` is connected (its UUID is {other}, this one's {}); two machines can't share a name, \
             nor one machine two state directories",
            hello.host_name, hello.host
        ))
    })?;
    Ok((hello, present))
}

fn parse(frame: &Frame) -> Result<Hello, SessionEnd> {
    let Frame::Message(bytes) = frame else { return Err(protocol("a session begins with Hello")) };
    let hello = match ToStore::decode(bytes) {
        Ok(ToStore::Hello(hello)) => hello,
        Ok(_) => return Err(protocol("a session begins with Hello")),
        Err(error) => return Err(protocol(error.to_string())),
    };
    if hello.version != PROTOCOL_VERSION {
        let why = format!("this store speaks version {PROTOCOL_VERSION}, the host version {}", hello.version);
        return Err(SessionEnd::Refused(RefusalCode::Version, why));
    }
    Ok(hello)
}

fn check_name(hello: &Hello, who: &Identity) -> Result<(), SessionEnd> {
    let name = &hello.host_name;
    if name.is_empty() || name.len() > limits::TEXT_BYTES || name.chars().any(|c| c.is_control() || c == '/')
    {
        return Err(identity(
            "the host's name is empty, too long, or has characters that no name has".to_owned(),
        ));
    }
    match &who.pinned_name {
        Some(pinned) if !is_of(pinned, name) => {
            Err(identity(format!("this key is for the host `{pinned}`, and the host calls itself `{name}`")))
        }
        _ => Ok(()),
    }
}

/// A host, or what is done on it by something else than its mount: `drone1+import` is drone1's. No host's name has a `+` in it.
fn is_of(pinned: &str, name: &str) -> bool {
    name.strip_prefix(pinned).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// A UUID is no secret: every host sees the others' in the catalog. So a pinned session can't use one that has another name's commits.
async fn check_history(server: &Arc<Server>, hello: &Hello, who: &Identity) -> Result<(), SessionEnd> {
    if who.pinned_name.is_none() {
        return Ok(());
    }
    let (host, for_history) = (hello.host, Arc::clone(server));
    let named = on_store(&server.store, move |store| for_history.history.name_of(store, host)).await;
    match named.map_err(|fault| store_failed(fault.to_string()))? {
        Some(name) if name != hello.host_name => Err(identity(format!(
            "the UUID {host} belongs to the host `{name}`, not to `{}`",
            hello.host_name
        ))),
        _ => Ok(()),
    }
}

/// The answer to a good Hello.
pub(super) fn welcome(server: &Server, hello: &Hello, rights: Rights) -> Welcome {
    let differences = differences(&hello.settings, &server.settings);
    for difference in &differences {
        tracing::warn!(host = hello.host_name, "settings differ: {difference}");
    }
    Welcome {
        version: PROTOCOL_VERSION,
        store: server.store.uuid(),
        head: server.store.head(),
        params: server.store.params(),
        may_delete: rights.delete,
        differences,
    }
}

/// Settings that both sides name and that differ. What only one side knows is another version's, not a difference.
fn differences(host: &[String], store: &[String]) -> Vec<String> {
    let parts = |line: &String| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store: Vec<_> = store.iter().filter_map(parts).collect();
    let differing = host.iter().filter_map(parts).filter_map(|(name, here)| {
        let (_, there) = store.iter().find(|(n, there)| *n == name && *there != here)?;
        Some(format!("`{name}` is `{here}` on this host and `{there}` on the results host"))
    });
    differing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_key_is_for_its_host_and_what_is_done_there() {
        for good in ["drone1", "drone1+import", "drone1+"] {
            assert!(is_of("drone1", good), "{good}");
        }
        for bad in ["drone10", "drone", "drone2", "drone10+import", "+drone1", ""] {
            assert!(!is_of("drone1", bad), "{bad}");
        }
    }

    #[test]
    fn a_difference_is_told_by_name_and_an_unknown_setting_is_none() {
        let lines = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let told =
            differences(&lines("complete_on=archiver a=1 new=3"), &lines("complete_on=parser a=1 old=3"));
        assert_eq!(told, ["`complete_on` is `archiver` on this host and `parser` on the results host"]);
    }
}
