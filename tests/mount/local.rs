//! What is in the spool: the mount must be as good as the directory itself.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
        },
    },
    path::Path,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use resultsfs::fuse::{self, MountError};

use crate::{
    all_ways,
    lab::{assert_same_tree, describe, options, sh},
};

all_ways! {
    /// Several processes append to one log, as autoserv and its children do: no line is lost or torn.
    fn appends_of_several_processes(lab) {
        let log = lab.at("1-me/host1/status.log");
        fs::create_dir_all(log.parent().expect("a parent")).expect("made");
        sh(
            r#"for p in 1 2 3 4 5; do (for i in $(seq 200); do echo "process $p line $i of a log that is written by many" >> "$1"; done) & done; wait"#,
            &[&log],
        );
        let text = fs::read_to_string(&log).expect("read");
        let mut lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1000);
        assert!(lines.iter().all(|l| l.ends_with("written by many") && l.starts_with("process ")));
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 1000);
        assert_eq!(fs::read_to_string(lab.spool("1-me/host1/status.log")).expect("read"), text);
    }

    fn two_handles_of_one_file_see_each_other(lab) {
        let path = lab.at("file");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).expect("opens");
        let mut reader = File::open(&path).expect("opens");
        let mut text = String::new();
        writer.write_all(b"one\n").expect("written");
        reader.read_to_string(&mut text).expect("read");
        writer.write_all(b"two\n").expect("written");
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "one\ntwo\n");
        let other = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        other.write_all_at(b"ONE", 0).expect("written");
        writer.write_all(b"three\n").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "ONE\ntwo\nthree\n");
        assert_eq!(fs::metadata(&path).expect("stat").len(), 14);
    }

    fn an_open_file_outlives_its_name(lab) {
        let path = lab.at("file");
        fs::write(&path, "text").expect("written");
        let mut file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        fs::remove_file(&path).expect("removed");
        assert!(!path.exists());
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
        file.seek(SeekFrom::End(0)).expect("seek");
        file.write_all(b" and more").expect("written");
        file.set_len(11).expect("truncated");
        file.set_permissions(fs::Permissions::from_mode(0o600)).expect("chmod");
        let mut text = String::new();
        file.rewind().expect("seek");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "text and mo");
        // The next file of that name is another one.
        fs::write(&path, "new").expect("written");
        assert_ne!(fs::metadata(&path).expect("stat").ino(), file.metadata().expect("fstat").ino());
    }

    fn renames(lab) {
        fs::create_dir_all(lab.at("1-me/h")).expect("made");
        fs::create_dir_all(lab.at("2-me")).expect("made");
        fs::write(lab.at("1-me/h/a"), "a").expect("written");
        fs::write(lab.at("1-me/h/b"), "b").expect("written");
        let mut open = OpenOptions::new().append(true).open(lab.at("1-me/h/a")).expect("opens");
        fs::rename(lab.at("1-me/h/a"), lab.at("1-me/h/b")).expect("renamed");
        assert!(!lab.at("1-me/h/a").exists());
        fs::rename(lab.at("1-me/h"), lab.at("2-me/g")).expect("renamed");
        open.write_all(b"+").expect("written");
        assert_eq!(fs::read_to_string(lab.at("2-me/g/b")).expect("read"), "a+");
        assert!(fs::metadata(lab.at("1-me/h")).is_err());
        fs::write(lab.at("2-me/c"), "c").expect("written");
        sh(r#"mv -n "$1" "$2"; test -e "$1""#, &[&lab.at("2-me/c"), &lab.at("2-me/g/b")]);
        let exchange = |a: &Path, b: &Path| {
            rustix::fs::renameat_with(rustix::fs::CWD, a, rustix::fs::CWD, b, rustix::fs::RenameFlags::EXCHANGE)
        };
        exchange(&lab.at("2-me/c"), &lab.at("2-me/g/b")).expect("exchanged");
        assert_eq!(fs::read_to_string(lab.at("2-me/g/b")).expect("read"), "c");
        assert_eq!(fs::read_to_string(lab.at("2-me/c")).expect("read"), "a+");
        fs::create_dir(lab.at("full")).expect("made");
        fs::write(lab.at("full/x"), "").expect("written");
        let error = fs::rename(lab.at("2-me"), lab.at("full")).expect_err("not empty");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    }

    /// Dangling links are normal in results, and stay links.
    fn links(lab) {
        symlink("nowhere/at all", lab.at("dangling")).expect("made");
        assert_eq!(fs::read_link(lab.at("dangling")).expect("read"), Path::new("nowhere/at all"));
        assert!(fs::metadata(lab.at("dangling")).is_err());
        assert!(fs::symlink_metadata(lab.at("dangling")).expect("stat").is_symlink());
        fs::write(lab.at("a"), "1").expect("written");
        fs::hard_link(lab.at("a"), lab.at("b")).expect("linked");
        let (a, b) = (fs::metadata(lab.at("a")).expect("stat"), fs::metadata(lab.at("b")).expect("stat"));
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
        fs::write(lab.at("b"), "22").expect("written");
        assert_eq!(fs::read_to_string(lab.at("a")).expect("read"), "22");
        fs::remove_file(lab.at("a")).expect("removed");
        assert_eq!(fs::metadata(lab.at("b")).expect("stat").nlink(), 1);
        fs::hard_link(lab.at("dangling"), lab.at("dangling2")).expect("linked");
        assert!(fs::symlink_metadata(lab.at("dangling2")).expect("stat").is_symlink());
    }

    fn attributes(lab) {
        let path = lab.at("file");
        fs::write(&path, "text").expect("written");
        for mode in [0o000, 0o600, 0o4755, 0o2711, 0o1777, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, mode);
            assert_eq!(fs::metadata(lab.spool("file")).expect("stat").mode() & 0o7777, mode);
        }
        chown(&path, Some(1234), Some(4321)).expect("chown");
        let stat = fs::metadata(&path).expect("stat");
        assert_eq!((stat.uid(), stat.gid()), (1234, 4321));
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        for time in [
            UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
            UNIX_EPOCH - Duration::new(86_400, 0),
            UNIX_EPOCH - Duration::new(1, 250_000_001),
            UNIX_EPOCH + Duration::new(0, 1),
        ] {
            file.set_times(fs::FileTimes::new().set_modified(time)).expect("utimens");
            assert_eq!(fs::metadata(&path).expect("stat").modified().expect("time"), time);
            assert_eq!(fs::metadata(lab.spool("file")).expect("stat").modified().expect("time"), time);
        }
        sh(r#"touch -h -d @1000000.5 "$2"; touch "$1"; ln -s x "$2/link"; touch -h -d @-5.5 "$2/link"
              test "$(stat -c %.Y "$2/link")" = -5.500000000; test "$(($(date +%s) - $(stat -c %Y "$1")))" -lt 20"#,
           &[&path, &lab.at("")]);
    }

    /// Whoever may set a time can't end the mount with it.
    fn the_earliest_and_the_latest_time(lab) {
        let path = lab.at("file");
        fs::write(&path, "").expect("written");
        for secs in [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1] {
            for nanos in [0, 5, 999_999_999] {
                let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos };
                let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                for path in [&path, &lab.spool("file")] {
                    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).expect("set");
                }
                let [ours, native] = [&path, &lab.spool("file")].map(|p| fs::metadata(p).expect("stat").mtime());
                assert_eq!(ours, native);
            }
        }
    }

    fn sizes(lab) {
        let path = lab.at("file");
        fs::write(&path, vec![7; 100_000]).expect("written");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        file.set_len(10).expect("shorter");
        assert_eq!(fs::metadata(&path).expect("stat").len(), 10);
        file.set_len(1 << 20).expect("longer");
        let mut byte = [1];
        file.read_exact_at(&mut byte, 500_000).expect("read");
        assert_eq!(byte, [0]);
        sh(r#"truncate -s 3 "$1"; test "$(stat -c %s "$1")" = 3; fallocate -l 8192 "$1"; test "$(stat -c %s "$1")" = 8192"#, &[&path]);
        fs::write(&path, "O_TRUNC").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"O_TRUNC");
        File::create(&path).expect("truncated");
        assert_eq!(fs::metadata(lab.spool("file")).expect("stat").len(), 0);
        file.sync_all().expect("fsync");
        file.sync_data().expect("fdatasync");
        File::open(lab.at("")).expect("opens").sync_all().expect("fsync of a directory");
    }

    fn shared_mappings(lab) {
        let path = lab.at("file");
        fs::write(&path, vec![b'.'; 8192]).expect("written");
        sh(
            r#"python3 - "$1" <<'END'
import mmap, sys
with open(sys.argv[1], "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    m[4096:4100] = b"here"
    m.flush()
    with open(sys.argv[1], "rb") as g:
        g.seek(4096)
        assert g.read(4) == b"here"
    f.seek(100); f.write(b"written"); f.flush()
    assert m[100:107] == b"written"
    m.close()
END"#,
            &[&path],
        );
        let bytes = fs::read(lab.spool("file")).expect("read");
        assert_eq!((&bytes[4096..4100], &bytes[100..107], bytes.len()), (&b"here"[..], &b"written"[..], 8192));
        assert_eq!(fs::read(&path).expect("read"), bytes);
    }

    /// tko's parser locks `.parse.lock` with flock(2).
    fn locks_hold_between_processes(lab) {
        let path = lab.at(".parse.lock");
        let file = File::create(&path).expect("made");
        file.lock().expect("locked");
        let try_lock = || Command::new("flock").arg("-n").arg(&path).arg("true").status().expect("runs");
        assert!(!try_lock().success());
        file.unlock().expect("unlocked");
        assert!(try_lock().success());
    }

    fn odd_names(lab) {
        let long = "n".repeat(255);
        let raw = OsStr::from_bytes(b"\xff\xfe not utf-8 \n");
        for name in [OsStr::new(&long), raw, OsStr::new(" "), OsStr::new("...")] {
            fs::write(lab.at(name), "x").expect("written");
            assert_eq!(fs::read(lab.at(name)).expect("read"), b"x");
        }
        let mut names: Vec<_> = fs::read_dir(lab.at("")).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        let mut expected = vec![OsStr::new(&long).to_owned(), raw.to_owned(), " ".into(), "...".into()];
        expected.sort();
        assert_eq!(names, expected);
        let error = fs::write(lab.at("n".repeat(256)), "").expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    fn special_files_and_programs(lab) {
        sh(
            r#"cd "$1"; mkfifo p; (echo through > p) & test "$(cat p)" = through; wait
               printf '#!/bin/sh\necho ran "$@"\n' > prog; chmod 755 prog; test "$(./prog a b)" = "ran a b"
               cp /bin/true bin; ./bin; touch -m bin; ./bin
               mkdir -p deep/er; cd deep/er; test "$(pwd -P)" = "$1/deep/er"; echo x > here; cat here
               python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("s")'; test -S s"#,
            &[&lab.at("")],
        );
        let room = |path: &Path| rustix::fs::statvfs(path).expect("statfs");
        let (ours, native) = (room(&lab.at("")), room(&lab.spool("")));
        assert_eq!((ours.f_blocks, ours.f_bsize, ours.f_namemax), (native.f_blocks, native.f_bsize, 255));
    }

    /// New objects belong to who makes them, also in a directory that hands on its group.
    fn owners_of_new_objects(lab) {
        sh(
            r#"cd "$1"; chmod 777 .; mkdir shared; chown 0:4321 shared; chmod 2777 shared
               setpriv --reuid 1234 --regid 1235 --clear-groups sh -c 'umask 027; cd "$0"; echo x > f; mkdir d; ln -s f l; mkfifo p; echo x > shared/f; mkdir shared/d' "$1"
               test "$(stat -c %u:%g:%a f d p)" = "1234:1235:640
1234:1235:750
1234:1235:640"
               test "$(stat -c %u:%g l)" = 1234:1235
               test "$(stat -c %u:%g:%a shared/f shared/d)" = "1234:4321:640
1234:4321:2750""#,
            &[&lab.at("")],
        );
        let denied = Command::new("setpriv")
            .args(["--reuid", "99", "--regid", "99", "--clear-groups", "cat"])
            .arg(lab.at("f"))
            .output()
            .expect("runs");
        assert!(!denied.status.success(), "default_permissions must hold");
    }

    /// Who may not set them takes setuid and setgid bits away by changing the content, as on a local disk, and sees that at once; so does a
    /// change of owner. Who sets them gets them, for any group.
    fn changed_content_loses_setuid_and_setgid(lab) {
        sh(
            r#"cd "$1"; chmod 777 .
               for how in written appended cut emptied given; do echo content > $how; chown 1234:4321 $how; chmod 6777 $how; done
               test "$(stat -c %a written)" = 6777
               mode() { test "$(stat -c %a "$1")" = "$2" || { stat -c "%n %a" "$1"; exit 1; }; }
               setpriv --reuid 99 --regid 99 --clear-groups sh -c \
                   'printf C | dd of=written conv=notrunc status=none; printf C >> appended; truncate -s 3 cut; : > emptied'
               for how in written appended cut; do mode $how 777; done
               for i in $(seq 100); do test "$(stat -c %a emptied)" = 777 && break; sleep 0.1; done; mode emptied 777
               chown 1234 given; mode given 777
               chmod 2755 given; mode given 2755; chmod u+s given; mode given 6755
               python3 -c 'import os; os.umask(0); os.mknod("made", 0o104755); os.close(os.open("opened", os.O_CREAT | os.O_WRONLY, 0o2711))'
               mode made 4755; mode opened 2711"#,
            &[&lab.at("")],
        );
        assert_same_tree(&lab.spool(""), &describe(&lab.at("")));
    }

    /// P1 for the local half: what rsync and cp bring in is the same tree.
    fn copies_are_the_same_tree(lab) {
        let source = lab.dir.path().join("source");
        sh(
            r#"mkdir -p "$1/a/b/c" "$1/empty"; cd "$1"
               for i in $(seq 60); do head -c $((i * 997)) /dev/urandom > a/b/f$i; done
               ln a/b/f1 a/hard; ln -s ../nowhere a/dangling; ln -s b a/dir; mkfifo a/fifo; truncate -s 3M a/sparse
               chmod 600 a/b/f2; chmod 000 a/b/f3; chmod 2755 a/b/c; chown 12:34 a/b/f4
               find . -depth -exec touch -h -d '1969-12-31 12:34:56.789012345' {} +"#,
            &[&source],
        );
        sh(r#"rsync -aH "$1/" "$2/rsynced/"; cp -a "$1" "$2/copied"; tar -C "$1" --format=pax -cf - . | (mkdir "$2/tarred"; tar -C "$2/tarred" -xpf -)"#,
           &[&source, &lab.at("")]);
        let expected = describe(&source);
        for copy in ["rsynced", "copied", "tarred"] {
            assert_same_tree(&lab.at(copy), &expected);
            assert_same_tree(&lab.spool(copy), &expected);
        }
        sh(r#"rm -rf "$1/copied"; test ! -e "$1/copied"; test "$(rsync -aHni --delete "$2/" "$1/rsynced/" | wc -l)" = 0"#,
           &[&lab.at(""), &source]);
        assert!(!lab.spool("copied").exists());
    }

    fn a_big_directory_lists_every_name_once(lab) {
        fs::create_dir(lab.at("d")).expect("made");
        for i in 0..2500 {
            File::create(lab.spool(format!("d/file number {i}"))).expect("made");
        }
        for _ in 0..2 {
            let mut names: Vec<_> = fs::read_dir(lab.at("d")).expect("lists").map(|e| e.expect("entry").file_name()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 2500);
        }
        let listing = sh(r#"ls -l "$1" | tail -n +2 | wc -l; rm "$1"/*9; ls "$1" | wc -l"#, &[&lab.at("d")]);
        assert_eq!(listing.split_whitespace().collect::<Vec<_>>(), ["2500", "2250"]);
    }

    /// What nobody uses is forgotten, and no handle stays behind.
    fn nothing_stays_open(lab) {
        sh(r#"cd "$1"; for i in $(seq 50); do echo $i > f$i; cat f$i; done; ls -lR . ; rm f*"#, &[&lab.at("")]);
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while lab.fs.counts() != (1, 0, 0) || lab.activity.open_handles() != 0 {
            assert!(std::time::Instant::now() < until, "{:?}", lab.fs.counts());
            // The kernel sends releases and forgets when it likes.
            let _ = fs::write("/proc/sys/vm/drop_caches", "2");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// P2 needs every handle counted where its file is: files are opened, moved to another unit and closed at once, and in the end no
    /// unit has a handle.
    fn moves_between_opening_and_closing_lose_no_handle(lab) {
        let units = ["1-me/h", "2-me/h"];
        units.iter().for_each(|unit| fs::create_dir_all(lab.at(unit)).expect("made"));
        let started = std::time::Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let at = |unit: &str| lab.at(format!("{unit}/f{thread}"));
                let (here, there) = (at(units[0]), at(units[1]));
                scope.spawn({
                    let paths = [here.clone(), there.clone()];
                    move || {
                        while started.elapsed() < Duration::from_secs(2) {
                            paths.iter().for_each(|p| drop(OpenOptions::new().append(true).open(p)));
                        }
                    }
                });
                scope.spawn(move || {
                    while started.elapsed() < Duration::from_secs(2) {
                        fs::write(&here, "x").expect("written");
                        fs::rename(&here, &there).expect("moved");
                    }
                });
            }
        });
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while lab.activity.open_handles() != 0 {
            assert!(std::time::Instant::now() < until, "{} handles are left", lab.activity.open_handles());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn a_used_mount_is_busy_and_a_second_is_refused(lab) {
        let held = File::create(lab.at("held")).expect("made");
        assert!(held.as_raw_fd() > 2);
        assert!(matches!(lab.mounted.unmount(false), Err(MountError::Unmount { .. })));
        let again = fuse::mount(lab.fs.clone(), &lab.at(""), &options());
        assert!(matches!(again.err(), Some(MountError::AlreadyMounted(_))));
        drop(held);
        let line = sh(r#"findmnt -no FSTYPE,OPTIONS "$1""#, &[&lab.at("")]);
        assert!(line.starts_with("fuse.resultsfs"), "{line}");
        for option in ["nosuid", "nodev", "default_permissions", "allow_other"] {
            assert!(line.contains(option), "{line}");
        }
    }

    fn files_opened_by_many_threads_at_once(lab) {
        fs::write(lab.at("f"), vec![5; 50_000]).expect("written");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = lab.at("f");
                scope.spawn(move || {
                    for i in 0..100 {
                        let file = if (thread + i) % 2 == 0 {
                            OpenOptions::new().read(true).write(true).custom_flags(libc::O_APPEND).open(&path)
                        } else {
                            File::open(&path)
                        };
                        let mut bytes = [0; 100];
                        file.expect("opens").read_exact_at(&mut bytes, 1000 * thread).expect("read");
                        assert_eq!(bytes, [5; 100]);
                    }
                });
            }
        });
    }
}

/// A daemon that was killed leaves a dead mount; the next one clears it away.
#[test]
fn a_dead_mount_is_cleared_away() {
    let lab = crate::lab::Lab::new(fuse::Passthrough::Auto);
    fuse::abort_connection(lab.mounted.device()).expect("aborted");
    assert!(lab.mounted.wait().is_ok());
    let error = fs::metadata(lab.at("")).expect_err("dead");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let again = fuse::mount(lab.fs.clone(), &lab.at(""), &options()).expect("mounted");
    fs::write(lab.at("f"), "alive").expect("written");
    again.unmount(true).expect("unmounted");
    assert!(again.wait().is_ok());
}
