use proptest::prelude::*;

use super::*;

fn path(text: &str) -> RelPath {
    text.parse().expect("a path")
}

fn entry(at: &str, body: Body) -> Entry {
    let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { secs: -5, nanos: 7 } };
    Entry { path: path(at), attrs, body, since: Generation::FIRST, base: Seq(0) }
}

fn file(at: &str) -> Entry {
    entry(at, Body::File { size: 1, content: Hash::of(b"x") })
}

fn refused(entries: Vec<Entry>) -> ManifestError {
    Manifest::new(entries, vec![], vec![], vec![]).expect_err("breaks a rule")
}

#[test]
fn rules_are_checked_whoever_made_it() {
    let twice = refused(vec![file("a"), file("a")]);
    assert!(matches!(twice, ManifestError::Entry { rule: "paths must ascend and differ", .. }));
    assert!(matches!(refused(vec![entry("b", Body::Link { to: path("c") })]), ManifestError::Entry { .. }));
    let to_dir = vec![entry("a", Body::Dir), entry("b", Body::Link { to: path("a") })];
    assert!(matches!(refused(to_dir), ManifestError::Entry { .. }));
    let target = vec![b'a', 0];
    assert!(matches!(refused(vec![entry("l", Body::Symlink { target })]), ManifestError::Entry { .. }));
    let mut odd = file("a");
    odd.attrs.mode = 0o100_644;
    assert!(matches!(refused(vec![odd]), ManifestError::Entry { .. }));
}

#[test]
fn a_link_is_the_file_that_it_names() {
    let manifest =
        Manifest::new(vec![file("a"), entry("b", Body::Link { to: path("a") })], vec![], vec![], vec![])
            .expect("good");
    let link = manifest.get(&path("b")).expect("there");
    assert_eq!(manifest.file_of(link), Some((1, Hash::of(b"x"))));
    assert_eq!(manifest.contents().count(), 1);
}

#[test]
fn other_encodings_of_the_same_are_refused() {
    let bytes = Manifest::new(vec![file("a")], vec![], vec![], vec![]).expect("good").encode();
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(Manifest::decode(&longer), Err(ManifestError::NotCanonical));
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut at {len}");
    }
}

/// A block of some kilobytes can unpack to a manifest whose lists would take gigabytes.
#[test]
fn a_list_beyond_its_limit_is_refused_where_it_passes_it() {
    let (omitted, name) = (&b"\x82\x41a\x00"[..], &b"\x82\x00\x61a"[..]);
    let count = limits::MANIFEST_ENTRIES + 1;
    let list = [&b"\x9a"[..], &(count as u32).to_be_bytes()].concat();
    let (none, many) = (b"\x80".to_vec(), |item: &[u8]| [&list[..], &item.repeat(count)].concat());
    for lists in [[&none[..], &many(omitted), &none, &none], [&none, &none, &many(name), &none]] {
        let [entries, omitted, users, groups] = lists;
        let bytes =
            [b"\xa5\x00\x01\x01", entries, b"\x02", omitted, b"\x03", users, b"\x04", groups].concat();
        let refused = Manifest::decode(&bytes).expect_err("is too much");
        assert!(matches!(&refused, ManifestError::Encoding(why) if why.contains("in a list")), "{refused}");
    }
}

/// Three sparse files of the largest size that a file can have overflow the sum of their sizes.
#[test]
fn sizes_that_no_number_holds_together_add_up_to_the_largest() {
    let huge = |at| entry(at, Body::File { size: i64::MAX as u64, content: Hash::of(b"x") });
    let manifest =
        Manifest::new(vec![huge("a"), huge("b"), huge("c")], vec![], vec![], vec![]).expect("good");
    assert_eq!(manifest.bytes(), u64::MAX);
}

/// The bytes are a contract: stores hold them for years.
#[test]
fn the_encoding_does_not_change() {
    let manifest = Manifest::new(
        vec![entry("", Body::Dir), file("keyval"), entry("l", Body::Symlink { target: b"../x".to_vec() })],
        vec![Omitted { path: path("s"), kind: OmittedKind::Socket }],
        vec![Name { id: 0, name: "root".into() }],
        vec![],
    )
    .expect("good");
    assert_eq!(
        Hash::of(&manifest.encode()).to_string(),
        "2058da098db1c57639a50d39a334440df6386d17c5dac335cbd9a5c5d82dc207"
    );
}

fn any_body() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::Dir),
        (any::<u64>(), any::<[u8; 32]>()).prop_map(|(size, h)| Body::File { size, content: Hash(h) }),
        prop::collection::vec(1u8.., 1..40).prop_map(|target| Body::Symlink { target }),
        Just(Body::Fifo),
        Just(Body::Whiteout),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let name = prop::collection::vec(prop_oneof![1u8..46, 48u8..], 1..12);
    let attrs = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000);
    (prop::collection::vec(name, 1..4), attrs, any_body(), 1u32.., any::<u64>()).prop_map(
        |(names, (mode, uid, gid, secs, nanos), body, since, base)| Entry {
            path: RelPath::parse(names.join(&b'/')).expect("no dots and no slashes in the names"),
            attrs: Attrs { mode, uid, gid, mtime: Timestamp { secs, nanos } },
            body,
            since: Generation(since),
            base: Seq(base),
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(mut entries in prop::collection::vec(any_entry(), 0..40)) {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        let manifest = Manifest::new(entries, vec![], vec![], vec![]).expect("obeys the rules");
        let contents = Manifest::contents_of(&manifest.encode());
        prop_assert_eq!(contents, Ok(manifest.contents().collect::<Vec<_>>()));
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}
