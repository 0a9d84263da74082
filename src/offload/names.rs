//! Names of the owners' numbers, from this host's user and group databases.
//!
//! A name once found is kept while the program runs: databases behind a network answer slowly, and a manifest is made often.
//! That a number has no name is not kept, so that a user added later is found.

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int},
    ptr,
    sync::{Mutex, PoisonError},
};

use crate::limits;

/// No entry of a user or group database is longer; the group's list of members is what may be long.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The names found so far.
#[derive(Debug, Default)]
pub struct OwnerNames {
    users: Mutex<HashMap<u32, String>>,
    groups: Mutex<HashMap<u32, String>>,
}

impl OwnerNames {
    /// The name of user number `uid`.
    pub fn user(&self, uid: u32) -> Option<String> {
        remember(&self.users, uid, user_name)
    }

    /// The name of group number `gid`.
    pub fn group(&self, gid: u32) -> Option<String> {
        remember(&self.groups, gid, group_name)
    }
}

fn remember(names: &Mutex<HashMap<u32, String>>, id: u32, find: fn(u32) -> Option<String>) -> Option<String> {
    let known = || names.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = known().get(&id) {
        return Some(name.clone());
    }
    // The databases are asked without the lock: they may be behind a network.
    let name = find(id)?;
    known().insert(id, name.clone());
    Some(name)
}

/// Number of the user called `name` on this host.
pub fn user_id(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    with_buffer(|buffer| {
        // SAFETY: all zero is a valid passwd; it is plain numbers and pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: every pointer is to a live local, and the buffer's length is its own.
        let code = unsafe {
            libc::getpwnam_r(name.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found)
        };
        (code, (!found.is_null()).then_some(entry.pw_uid))
    })
}

/// Number of the group called `name` on this host.
pub fn group_id(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    with_buffer(|buffer| {
        // SAFETY: all zero is a valid group; it is plain numbers and pointers.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: every pointer is to a live local, and the buffer's length is its own.
        let code = unsafe {
            libc::getgrnam_r(name.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found)
        };
        (code, (!found.is_null()).then_some(entry.gr_gid))
    })
}

fn user_name(uid: u32) -> Option<String> {
    with_buffer(|buffer| {
        // SAFETY: all zero is a valid passwd; it is plain numbers and pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: every pointer is to a live local, and the buffer's length is its own.
        let code =
            unsafe { libc::getpwuid_r(uid, &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found) };
        // SAFETY: a found entry's name points to text with a NUL in `buffer`.
        (code, (!found.is_null()).then(|| unsafe { text(entry.pw_name) }).flatten())
    })
}

fn group_name(gid: u32) -> Option<String> {
    with_buffer(|buffer| {
        // SAFETY: all zero is a valid group; it is plain numbers and pointers.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: every pointer is to a live local, and the buffer's length is its own.
        let code =
            unsafe { libc::getgrgid_r(gid, &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found) };
        // SAFETY: a found entry's name points to text with a NUL in `buffer`.
        (code, (!found.is_null()).then(|| unsafe { text(entry.gr_name) }).flatten())
    })
}

/// Calls `ask` with ever larger buffers while it says ERANGE.
fn with_buffer<T>(ask: impl Fn(&mut [c_char]) -> (c_int, Option<T>)) -> Option<T> {
    let mut buffer = vec![0; 4096];
    loop {
        match ask(&mut buffer) {
            (libc::ERANGE, _) if buffer.len() < ENTRY_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            (libc::EINTR, _) => {}
            (_, found) => return found,
        }
    }
}

/// # Safety
/// `name` is null or points to text that ends with a NUL and lives while this runs.
unsafe fn text(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as promised by the caller.
    let name = unsafe { CStr::from_ptr(name) }.to_str().ok()?;
    (!name.is_empty() && name.len() <= limits::TEXT_BYTES).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_the_name_its_number() {
        let names = OwnerNames::default();
        assert_eq!(names.user(0).as_deref(), Some("root"));
        assert_eq!(names.user(0).as_deref(), Some("root"));
        assert_eq!(names.group(0).as_deref(), Some("root"));
        assert_eq!((user_id("root"), group_id("root")), (Some(0), Some(0)));
    }

    #[test]
    fn a_number_that_nobody_has_has_no_name() {
        let names = OwnerNames::default();
        assert_eq!((names.user(3_999_999_999), names.group(3_999_999_999)), (None, None));
        assert_eq!((user_id("no such user"), group_id("no\0group")), (None, None));
    }
}
