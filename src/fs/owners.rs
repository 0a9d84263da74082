//! Local numbers of users and groups that a manifest names.
//!
//! Asking the system may wait for a directory server, so it is done where waiting is allowed, and remembered for a while.

use std::{
    collections::HashMap,
    ffi::CString,
    mem::MaybeUninit,
    ptr,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{FsResult, Need};

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(600);
/// Room for an entry of the user or group database; a larger group is asked for with more, up to a bound.
const ENTRY_BYTES: usize = 16 << 10;
/// See [`ENTRY_BYTES`].
const ENTRY_BYTES_MAX: usize = 4 << 20;

type Known = Mutex<HashMap<String, (Instant, Option<u32>)>>;

/// What was asked.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: Known,
    groups: Known,
}

impl Owners {
    /// Local numbers for two numbers with their names; the number itself where the name isn't told or isn't known here.
    pub(super) fn resolve(
        &self,
        (uid, user): (u32, Option<&str>),
        (gid, group): (u32, Option<&str>),
    ) -> FsResult<(u32, u32)> {
        match (known(&self.users, uid, user), known(&self.groups, gid, group)) {
            (Ok(uid), Ok(gid)) => Ok((uid, gid)),
            (user, group) => {
                let names = |unknown: Result<u32, String>| unknown.err().into_iter().collect();
                Err(Need::Names { users: names(user), groups: names(group) }.into())
            }
        }
    }

    /// Asks the system.
    pub(super) fn learn(&self, users: &[String], groups: &[String]) {
        let now = Instant::now();
        let learn = |known: &Known, names: &[String], ask: fn(&str) -> Option<u32>| {
            for name in names {
                let number = ask(name);
                known.lock().expect("no code panics under this lock").insert(name.clone(), (now, number));
            }
        };
        learn(&self.users, users, user_number);
        learn(&self.groups, groups, group_number);
    }
}

/// The number that goes for `number`, or the name to ask for.
fn known(known: &Known, number: u32, name: Option<&str>) -> Result<u32, String> {
    let Some(name) = name else { return Ok(number) };
    match known.lock().expect("no code panics under this lock").get(name) {
        Some((when, local)) if when.elapsed() < HOLDS => Ok(local.unwrap_or(number)),
        _ => Err(name.to_owned()),
    }
}

fn user_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all pointers are to what outlives the call, `room` with its true length.
        let error = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr().cast(),
                room.len(),
                &mut found,
            )
        };
        // SAFETY: when `found` isn't null it points to `entry`, which the call has then filled in.
        (error, (!found.is_null()).then(|| unsafe { (*found).pw_uid }))
    })
}

fn group_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all pointers are to what outlives the call, `room` with its true length.
        let error = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr().cast(),
                room.len(),
                &mut found,
            )
        };
        // SAFETY: when `found` isn't null it points to `entry`, which the call has then filled in.
        (error, (!found.is_null()).then(|| unsafe { (*found).gr_gid }))
    })
}

fn with_room(ask: impl Fn(&mut [u8]) -> (i32, Option<u32>)) -> Option<u32> {
    let mut room = vec![0; ENTRY_BYTES];
    loop {
        match ask(&mut room) {
            (libc::ERANGE, _) if room.len() < ENTRY_BYTES_MAX => room.resize(room.len() * 4, 0),
            (_, number) => return number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_name_wins_over_its_number() {
        let owners = Owners::default();
        let ask = || owners.resolve((4000, Some("root")), (4001, Some("no-such-group")));
        assert!(ask().is_err());
        owners.learn(&["root".into()], &["no-such-group".into()]);
        assert_eq!(ask().expect("known"), (0, 4001));
        assert_eq!(owners.resolve((7, None), (8, None)).expect("numbers"), (7, 8));
    }
}
