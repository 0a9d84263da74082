//! What the fuzzing begins with: of each format one of everything, made by the encoders.

use resultsfs::{
    catalog::{
        Commit, Head, Prune, Purge, Reclaimed, Record, RecordBody, Retirement, Snapshot, SnapshotChange,
        SnapshotChanges, Undelete, UnitLife,
    },
    chunk::{
        ChunkParams, ChunkRef, ObjectKind, Recipe, Stretch,
        block::{self, Block, BlockBuilder},
    },
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, StoreUuid, UnitId},
    journal::{
        Committed, Note, State, UnitRecord,
        stored::{self, Layer, Past},
    },
    manifest::{Attrs, Body, Entry, Manifest, Name, Omitted, OmittedKind, Timestamp},
    store::pack::{self, PackedBlock},
    wire::{
        CommitRequest, FromStore, Hello, JOIN_VERSION, Join, Lost, PROTOCOL_VERSION, PublishRequest,
        RefusalCode, RetireUnit, ToStore, Welcome, frame::Frame, message_frame, rights::Rights,
    },
};

use super::properties::{PACK, STORE, with_record};

type Seed = (String, Vec<u8>);

/// The seeds of a target.
pub fn of(target: &str) -> Vec<Seed> {
    let seeds: Vec<(&str, Vec<u8>)> = match target {
        "block" => vec![
            ("plain", blocks(false).remove(0)),
            ("packed", blocks(true).remove(0)),
            ("empty", BlockBuilder::default().finish(3).expect("is kept plain")),
            ("manifest", blocks(true).remove(1)),
        ],
        "catalog" => catalogs(),
        "config" => configs(),
        "frame" => frames(),
        "journal" => rows(),
        "manifest" => manifests().iter().map(|(name, manifest)| (*name, manifest.encode())).collect(),
        "message" => {
            return messages()
                .into_iter()
                .enumerate()
                .map(|(n, bytes)| (format!("message-{n:02}"), bytes))
                .collect();
        }
        "pack" => packs(),
        "pidfile" => {
            let files: [&[u8]; 8] = [
                b"",
                b"1042\n",
                b"1042",
                b"1042\n0\n",
                b"1042\n271\n3\n",
                b" 1042 \r\n-1\r\n+0",
                b"x\n",
                b"1\n2\n3\n4\n",
            ];
            return files
                .iter()
                .enumerate()
                .map(|(n, bytes)| (format!("pidfile-{n}"), bytes.to_vec()))
                .collect();
        }
        "recipe" => {
            vec![("none", recipe(0).encode()), ("one", recipe(1).encode()), ("several", recipe(5).encode())]
        }
        other => panic!("no seeds for {other}"),
    };
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// The seeds are what they are meant to be: accepted.
pub fn check() {
    for (name, manifest) in of("manifest") {
        Manifest::decode(&manifest).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for (name, block) in of("block") {
        Block::open(&block).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for (name, message) in of("message") {
        let is_one = ToStore::decode(&message).is_ok()
            || FromStore::decode(&message).is_ok()
            || Join::decode(&message).is_ok();
        assert!(is_one, "{name}");
    }
    let good = resultsfs::config::examine_text(GLOBAL.as_bytes(), Some(SHADOW.as_bytes()), Some("drone1"));
    assert!(good.config().is_some(), "{:?}", good.findings);
}

fn path(text: &str) -> RelPath {
    text.parse().expect("a path")
}

fn unit(number: u32) -> UnitId {
    match number % 2 {
        0 => UnitId::tree(path(&format!("{number}-me/host1"))),
        _ => UnitId::loose(path(&format!("{number}-me"))),
    }
}

fn host(number: u8) -> HostUuid {
    HostUuid([number; 16])
}

fn recipe(chunks: u32) -> Recipe {
    let chunk = |n: u32| ChunkRef { hash: Hash::of(&n.to_le_bytes()), bytes: 8192 + n };
    Recipe { chunks: (0..chunks).map(chunk).collect() }
}

fn manifests() -> Vec<(&'static str, Manifest)> {
    let entry = |at: &str, body: Body| {
        let attrs =
            Attrs { mode: 0o2750, uid: 1000, gid: 7, mtime: Timestamp { secs: -2, nanos: 500_000_000 } };
        Entry { path: path(at), attrs, body, since: Generation(2), base: Seq(41) }
    };
    let everything = vec![
        entry("", Body::Dir),
        entry("a.b", Body::File { size: 6, content: Hash::of(b"linked") }),
        entry("a/first", Body::Link { to: path("a.b") }),
        entry("dangling", Body::Symlink { target: b"../no\xffwhere".to_vec() }),
        entry("gone", Body::Whiteout),
        entry("huge", Body::File { size: u64::MAX, content: Hash::of(b"huge") }),
        entry("pipe", Body::Fifo),
    ];
    let omitted = ["dev", "socket"].map(|at| Omitted {
        path: path(at),
        kind: if at == "dev" { OmittedKind::Device } else { OmittedKind::Socket },
    });
    let name = |id, name: &str| Name { id, name: name.to_owned() };
    let (users, groups) = (vec![name(0, "root"), name(1000, "autotest")], vec![name(7, "lp")]);
    let made = |entries, omitted, users, groups| {
        Manifest::new(entries, omitted, users, groups).expect("a good manifest")
    };
    vec![
        ("empty", made(Vec::new(), Vec::new(), Vec::new(), Vec::new())),
        ("one", made(vec![entry("", Body::Dir)], Vec::new(), Vec::new(), Vec::new())),
        ("everything", made(everything, omitted.to_vec(), users, groups)),
    ]
}

/// One with some of everything, and one with a manifest alone.
fn blocks(packed: bool) -> Vec<Vec<u8>> {
    let text = if packed { b"GOOD\tsleeptest\n".repeat(40) } else { (0..40).collect() };
    let mut some = BlockBuilder::default();
    some.push(ObjectKind::Chunk, Hash::of(&text), &text);
    some.push(ObjectKind::Chunk, Hash::of(b"late=1\n"), b"late=1\n");
    some.push(ObjectKind::Recipe, Hash::of(b"a file"), &recipe(2).encode());
    let mut other = BlockBuilder::default();
    let manifest = manifests().remove(2).1.encode();
    other.push(ObjectKind::Manifest, Hash::of(&manifest), &manifest);
    [some, other].iter_mut().map(|builder| builder.finish(3).expect("compresses")).collect()
}

fn packs() -> Vec<(&'static str, Vec<u8>)> {
    let (mut bytes, mut packed) = (pack::encode_header(STORE, PACK).to_vec(), Vec::new());
    for block in blocks(true).into_iter().chain(blocks(false)) {
        let table = block::verify_stored(&block).expect("a good block");
        packed.push(PackedBlock::of(bytes.len() as u64, &block, table).expect("a good block"));
        bytes.extend_from_slice(&block);
    }
    let trailer = pack::encode_trailer(&packed, bytes.len() as u64);
    let none = pack::encode_trailer(&[], pack::HEADER_BYTES);
    let with = |must: u16, parts: &[&[u8]]| [&must.to_le_bytes()[..], &parts.concat()].concat();
    let first = packed[0].end() as usize;
    vec![
        ("fresh", with(0, &[&bytes[..40]])),
        ("open", with(40, &[&bytes])),
        ("open-good", with(first as u16, &[&bytes])),
        ("torn", with(first as u16, &[&bytes[..bytes.len() - 20]])),
        ("closed", with(u16::MAX, &[&bytes, &trailer])),
        ("closed-unsure", with(100, &[&bytes[..first], &pack::encode_trailer(&packed[..1], first as u64)])),
        ("closed-empty", with(u16::MAX, &[&bytes[..40], &none])),
        ("hole", with(u16::MAX, &[&bytes[..first], &[0; 30], &bytes[first..], &trailer])),
    ]
}

fn bodies() -> Vec<RecordBody> {
    let commit = |unit: UnitId, generation: u32, incarnation: u64| Commit {
        host: host(1),
        host_name: "drone1".into(),
        unit,
        generation: Generation(generation),
        manifest: Hash::of(b"manifest"),
        lost: generation > 1,
        bytes: 1 << 33,
        entries: 300,
        adopted_by: Some("root".into()).filter(|_| generation > 1),
        incarnation: Incarnation(incarnation),
    };
    let life = |number, incarnation| UnitLife { unit: unit(number), incarnation: Incarnation(incarnation) };
    vec![
        RecordBody::Commit(commit(unit(2), 1, 0)),
        RecordBody::Commit(commit(unit(3), 1, 0)),
        RecordBody::Retire(Retirement { host: host(1), host_name: "drone1".into(), units: vec![unit(2)] }),
        RecordBody::Commit(commit(unit(2), 2, 3)),
        RecordBody::Prune(Prune {
            by: "root".into(),
            rule: "older than 30 days".into(),
            units: vec![unit(3), unit(2)],
        }),
        RecordBody::Undelete(Undelete { by: "root".into(), lives: vec![life(3, 0)] }),
        RecordBody::Purge(Purge { by: "root".into(), lives: vec![life(2, 3)] }),
        RecordBody::Reclaim(Reclaimed { packs: vec![1, 2, 300] }),
    ]
}

fn records() -> Vec<Record> {
    let mut head = Head::genesis(STORE);
    let record = |body| {
        let record = Record { seq: head.seq.next(), prev: head.chain, time_ms: 1_700_000_000_000, body };
        head = record.link();
        record
    };
    bodies().into_iter().map(record).collect()
}

fn catalogs() -> Vec<(&'static str, Vec<u8>)> {
    let mut bytes = Vec::new();
    for record in records() {
        let start = bytes.len() as u64;
        let head =
            [&b"RFSc\0\0\0\0"[..], &start.to_le_bytes(), &3u32.to_le_bytes(), &[0; 4], &77u64.to_le_bytes()]
                .concat();
        bytes.extend_from_slice(&with_record(&head, &record.encode()));
    }
    let with = |beside: u8, bytes: &[u8]| [&[beside], bytes].concat();
    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    vec![
        ("empty", with(0, b"")),
        ("whole", with(0, &bytes)),
        ("witnessed", with(1 + 5, &bytes)),
        ("cut", with(2 + 10, &bytes)),
        ("copied", with(1 + 15, &bytes)),
        ("torn", with(0, &bytes[..bytes.len() - 9])),
        ("damaged", with(4, &damaged)),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let block = blocks(false).remove(0);
    let with = |which: u8, step: u8, frames: &[Frame]| {
        [vec![which, step], frames.iter().flat_map(Frame::encode).collect::<Vec<_>>()].concat()
    };
    let ping = message_frame(&ToStore::Ping);
    vec![
        ("join", with(0, 0, &[Frame::Join(b"join".to_vec())])),
        ("greeting", with(1, 1, std::slice::from_ref(&ping))),
        ("to-store", with(2, 7, &[ping.clone(), Frame::Upload(block.clone()), ping.clone()])),
        ("from-store", with(3, 0, &[message_frame(&FromStore::Pong), Frame::Reply(9, block)])),
        ("cut", with(2, 0, &[ping])[..6].to_vec()),
    ]
}

fn messages() -> Vec<Vec<u8>> {
    let head = Head { seq: Seq(70_000), chain: Hash([5; 32]) };
    let hash = Hash::of(b"manifest");
    let snapshot = Snapshot {
        host: host(2),
        host_name: "drone2".into(),
        unit: unit(4),
        generation: Generation(3),
        manifest: hash,
        time_ms: 20,
        begun_ms: 10,
        bytes: 5,
        entries: 2,
        incarnation: Incarnation(9),
    };
    let commit = CommitRequest {
        unit: unit(4),
        generation: Generation(3),
        manifest: hash,
        lost: false,
        incarnation: Incarnation::FIRST,
    };
    let publish = PublishRequest {
        unit: unit(3),
        generation: Generation(1),
        manifest: None,
        incarnation: Incarnation(2),
    };
    let to_store = [
        ToStore::Hello(Hello {
            version: PROTOCOL_VERSION,
            host: host(1),
            host_name: "drone1".into(),
            known: Some((StoreUuid([7; 16]), head)),
            settings: vec!["settle_seconds=10".into(), "local_only=".into()],
        }),
        ToStore::Offer(1, hash),
        ToStore::Missing(2, ObjectKind::Recipe, vec![hash, Hash([0; 32])]),
        ToStore::Cut(3, vec![Stretch { content: hash, first: 12, chunks: recipe(2).chunks }]),
        ToStore::Commit(4, commit),
        ToStore::Fetch(5, ObjectKind::Manifest, hash),
        ToStore::Follow(head),
        ToStore::Ping,
        ToStore::Taken(Seq(17)),
        ToStore::Retire(6, vec![RetireUnit { unit: unit(2), seq: Seq(3) }]),
        ToStore::Publish(7, publish.clone()),
        ToStore::Publish(7, PublishRequest { manifest: Some(hash), ..publish }),
        ToStore::Watch(8, None),
        ToStore::Watch(8, Some(2)),
        ToStore::Read(9, vec![unit(2), unit(3)]),
        ToStore::Returned(10),
    ];
    let records = records();
    let changes = vec![SnapshotChange::Set(snapshot), SnapshotChange::Gone(host(1), unit(3))];
    let from_store = [
        FromStore::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            store: STORE,
            head,
            params: ChunkParams::default(),
            may_delete: true,
            differences: vec!["lost_hours: 24 here, 48 there".into()],
        }),
        FromStore::Refused(RefusalCode::Identity, "another host has this name".into()),
        FromStore::Known(1, true),
        FromStore::Wanted(2, vec![0b101]),
        FromStore::Committed(4, records[0].clone()),
        FromStore::Rejected(4, "it lacks something".into()),
        FromStore::NotFound(5),
        FromStore::Records(records.clone()),
        FromStore::Resync(head),
        FromStore::Credit(1 << 20),
        FromStore::Pong,
        FromStore::Retired(6, records[2].clone()),
        FromStore::Published(7),
        FromStore::Snapshots(SnapshotChanges { upto: 5, started: Some(2), is_all: true, changes }),
        FromStore::Noted(9),
        FromStore::Lost(Lost { manifests: vec![hash], objects: vec![(ObjectKind::Chunk, hash)] }),
    ];
    let join = Join { version: JOIN_VERSION, pinned_name: Some("drone1".into()), rights: Rights::default() };
    let encoded =
        to_store.iter().map(message_frame).chain(from_store.iter().map(message_frame)).chain([join.frame()]);
    encoded
        .map(|frame| match frame {
            Frame::Message(bytes) | Frame::Join(bytes) => bytes,
            Frame::Upload(_) | Frame::Reply(..) => unreachable!("messages are in frames of messages"),
        })
        .collect()
}

fn row(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&(key.len() as u16).to_le_bytes()[..], key, value].concat()
}

fn rows() -> Vec<(&'static str, Vec<u8>)> {
    let hash = Hash::of(b"manifest");
    let committed = Committed { generation: Generation(2), manifest: hash, seq: Seq(9), time_ms: 1 << 40 };
    let running = UnitRecord {
        unit: unit(2),
        state: State::Running,
        generation: Generation(3),
        manifest: None,
        committed: None,
        partial: false,
        lost: false,
        by_hand: false,
        running_ms: Some(5),
        complete_ms: None,
        sealed_ms: None,
        committed_ms: None,
        evicted_ms: None,
        incarnation: Incarnation(4),
        stranded_ms: None,
        last_error: None,
    };
    let evicted = UnitRecord {
        unit: unit(3),
        state: State::Evicted,
        manifest: Some(hash),
        committed: Some(committed),
        partial: true,
        by_hand: true,
        evicted_ms: Some(1 << 40),
        ..running.clone()
    };
    let layer = |host: u32| Layer {
        host,
        manifest: hash,
        time_ms: 1 << 40,
        bytes: 1 << 33,
        entries: 300,
        lost: host == 1,
        commits: vec![(Generation(1), Seq(7)), (Generation(3), Seq(1 << 33))],
        adopted_by: Some("root".to_owned()).filter(|_| host == 0),
    };
    let past = Past {
        layers: vec![layer(2)],
        closed_by: Seq(8),
        closed_ms: 1 << 40,
        closed_on: "drone1".into(),
        rule: Some("older than 30 days".into()),
        purged: Some(Seq(9)),
    };
    let of_record = |record: &UnitRecord| {
        row(&stored::unit_key(&record.unit), &minicbor::to_vec(record).expect("encodes"))
    };
    let of_note = |at: &str, note: Note| row(&stored::note_key(&unit(2), &path(at)), &note.encode());
    let of_life = |past: &Past| {
        row(&[&stored::unit_key(&unit(2))[..], &[0; 8]].concat(), &minicbor::to_vec(past).expect("encodes"))
    };
    vec![
        ("running", of_record(&running)),
        ("evicted", of_record(&evicted)),
        ("gone", of_note("a/b", Note::Gone)),
        ("hidden", of_note("", Note::Hidden(Seq(7)))),
        ("based", of_note("a", Note::Based(Seq(u64::MAX)))),
        (
            "layers",
            row(&stored::unit_key(&unit(2)), &minicbor::to_vec([layer(0), layer(1)]).expect("encodes")),
        ),
        ("pruned", of_life(&past)),
        ("retired", of_life(&Past { rule: None, purged: None, ..past.clone() })),
    ]
}

const GLOBAL: &str = "\
[DEFAULT]
domain: example.com
[COMMON]
autotest_top_path: /usr/local/autotest
test_output_dir: /srv/out ; a comment
[SCHEDULER]
# a comment
rem another
results_host: dumpster.%(domain)s
dumpster.example.com_username: offloader
drones: drone1, drone2,
  drone3
drone2_disabled: 0
max_transfer_processes = 50
[RESULTSFS]
host_name: drone1
settle_seconds: 20
ssh_command: ssh -p 22 -o 'A=b c'
complete_on: parser
local_only: drone_tmp, keep
spool_high_percent: 90
retention_days: 30
";
const SHADOW: &str =
    "[RESULTSFS]\nstate_dir: /srv/%(name)s\nname: state\n[SCHEDULER]\nenable_archiving: False\n";

fn configs() -> Vec<(&'static str, Vec<u8>)> {
    let with = |global: &str, shadow: &str| {
        [&(global.len() as u16).to_le_bytes()[..], global.as_bytes(), shadow.as_bytes()].concat()
    };
    let alone = |global: &str| [&[0xff; 2][..], global.as_bytes()].concat();
    // Names as long as a quarter of the file: said in each of its lines they would be most of the memory.
    let name = "n".repeat(10_000);
    let lines = |line: &dyn Fn(u32) -> String| (0..1500).map(line).collect::<String>();
    let long_section = format!("[{name}]\n{}", lines(&|_| "a:\n".into()));
    let long_key = format!("[RESULTSFS]\n{name}: a\n{}", lines(&|_| " b: c\n".into()));
    let inherited =
        format!("[DEFAULT]\n{}{}", lines(&|i| format!("a{i}:b\n")), lines(&|i| format!("[s{i}]\n")));
    vec![
        ("good", with(GLOBAL, SHADOW)),
        ("long-section", alone(&long_section)),
        ("long-key", alone(&long_key)),
        ("inherited", with("", &inherited)),
        ("alone", alone(GLOBAL)),
        ("indented", alone(" [SCHEDULER]\n drones: a\n # b\n[COMMON\n:c\nd\n")),
        ("circle", alone("[RESULTSFS]\nhost_name: %(a)s\na: %(b)s\nb: %(A)s %%\nc: %(__name__)s %\n")),
        (
            "mail",
            with(
                "[NOTIFICATION]\ngrid_admin_email: a@b.org; root\nnotify_email_from: x@y.org\n[EMAIL]\nsmtp_server: mail\nsmtp_port: 25\n",
                "[EMAIL]\nsmtp_user: u\nsmtp_password: p%%w\n[RESULTSFS]\nnotify_command: /bin/tell -x\n",
            ),
        ),
        ("shadow-default", with("[SCHEDULER]\na: b\n", "[DEFAULT]\nx: y\n[default]\nz: %(x)s\n")),
        (
            "marks",
            alone(
                "\u{feff}[SCHEDULER]\nresults\u{a0}host: \"a\"\nresults_host: -oProxyCommand=x\nresult_host: a:22\n",
            ),
        ),
        (
            "wrong",
            alone(
                "[RESULTSFS]\nsettle_seconds: 10s\nstate_dir: a/../b\nssh_command: ssh $X\ncache_max_mib: 1\nlocal_only: a/b\n",
            ),
        ),
    ]
}
