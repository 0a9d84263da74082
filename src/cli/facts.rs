//! What daemons of this machine say of themselves, for `health` and `metrics`: asked within a bound, since who watches must not hang with what is watched.

use std::{path::PathBuf, sync::mpsc, thread, time::Duration};

use serde_json::Value;

use crate::{
    config::Config,
    control::{self, ControlError, Request},
    durable::{Disk, LockMode, RealDisk},
    server,
};

const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A daemon's answer, or why there is none.
pub enum Part {
    Told(Value),
    /// Nobody runs, and that may be so: a store whose socket waits for the first session.
    Idle,
    Silent(String),
}

/// What there is on this machine; `None`: nothing of the kind.
pub struct Facts {
    pub mount: Option<Part>,
    pub store: Option<Part>,
}

impl Facts {
    /// Asks both.
    pub fn gather(config: &Config) -> Self {
        let mount = config.state_dir.join("journal.redb").exists().then(|| {
            let part = ask(config.control_socket(), Request::Status);
            if matches!(part, Part::Idle) { Part::Silent("no daemon runs".to_owned()) } else { part }
        });
        let store = server::has_store(&config.store_dir).then(|| {
            let part = ask(config.store_dir.join(server::CONTROL_SOCKET), Request::StoreStatus);
            let lock = RealDisk.lock(&config.store_dir.join("lock"), LockMode::Shared);
            match part {
                Part::Idle if !lock.is_ok_and(|lock| lock.is_some()) => {
                    Part::Silent("somebody has it open and doesn't answer".to_owned())
                }
                part => part,
            }
        });
        Self { mount, store }
    }
}

fn ask(socket: PathBuf, request: Request) -> Part {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = None;
        let done = control::ask(&socket, &request, |item| answer = Some(item));
        let _ = tell.send(match (done, answer) {
            (Ok(_), Some(answer)) => Part::Told(answer),
            (Ok(_), None) => Part::Silent("it says nothing".to_owned()),
            (Err(ControlError::NotRunning { .. }), _) => Part::Idle,
            (Err(error), _) => Part::Silent(error.to_string()),
        });
    });
    let silent = || Part::Silent(format!("it doesn't answer within {} s", ANSWERS_WITHIN.as_secs()));
    told.recv_timeout(ANSWERS_WITHIN).unwrap_or_else(|_| silent())
}
