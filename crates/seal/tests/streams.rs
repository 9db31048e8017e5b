//! A sealed stream opens as what was sealed, and never as anything else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{Read, Seek},
    os::unix::fs::MetadataExt,
};

use firkin_seal::{DataKey, InstallationKey, OpenError, open, seal, stream::CHUNK_BYTES};
use proptest::prelude::*;

const NAME: &str = "artifact:a/memory";
/// Before the first chunk.
const HEAD: usize = 32;
const TAG: usize = 16;

fn sealed(key: &DataKey, name: &str, plain: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    assert_eq!(seal(key, name, &mut &plain[..], &mut sealed).unwrap(), plain.len() as u64);
    sealed
}

fn opened(key: &DataKey, name: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = open(key, name, &mut &sealed[..], &file)?;
    let mut plain = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut plain).unwrap();
    assert_eq!(bytes, plain.len() as u64);
    Ok(plain)
}

/// Chunks of bytes that are not zero, some of zeros, and a part of one.
fn plain(chunks: &[bool], rest: usize) -> Vec<u8> {
    let mut plain = Vec::new();
    for (n, filled) in chunks.iter().enumerate() {
        plain.extend(std::iter::repeat_n(if *filled { u8::try_from(n).unwrap() + 1 } else { 0 }, CHUNK_BYTES));
    }
    plain.extend(std::iter::repeat_n(7, rest));
    plain
}

/// Where the chunks of a stream begin and end.
fn frames(sealed: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut frames, mut at) = (Vec::new(), HEAD);
    while at < sealed.len() {
        let body = if sealed[at] == 1 { TAG } else { CHUNK_BYTES + TAG };
        let end = (at + 1 + body).min(sealed.len());
        frames.push(at..end);
        at = end;
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_sealed_opens_as_it_was(chunks in proptest::collection::vec(any::<bool>(), 0..5), rest in 0..CHUNK_BYTES) {
        let key = DataKey::random();
        let plain = plain(&chunks, rest);
        let stream = sealed(&key, NAME, &plain);
        prop_assert!(opened(&key, NAME, &stream).unwrap() == plain);
        prop_assert!(rest == 0 || !stream.windows(TAG).any(|window| window == [7; TAG]), "it can be read in the stream");
    }

    #[test]
    fn a_changed_bit_is_refused(chunks in proptest::collection::vec(any::<bool>(), 0..4), rest in 0..2000usize, at: prop::sample::Index, bit in 0..8u8) {
        let key = DataKey::random();
        let mut stream = sealed(&key, NAME, &plain(&chunks, rest));
        let at = at.index(stream.len());
        stream[at] ^= 1u8 << bit;
        prop_assert!(opened(&key, NAME, &stream).is_err(), "bit {} of byte {} of {}", bit, at, stream.len());
    }

    #[test]
    fn a_stream_that_is_cut_off_or_longer_is_refused(chunks in proptest::collection::vec(any::<bool>(), 0..4), rest in 0..2000usize, at: prop::sample::Index) {
        let key = DataKey::random();
        let stream = sealed(&key, NAME, &plain(&chunks, rest));
        let at = at.index(stream.len());
        prop_assert!(opened(&key, NAME, &stream[..at]).is_err(), "{} of {} bytes", at, stream.len());
        prop_assert!(opened(&key, NAME, &[&stream[..], &stream[HEAD..=at.max(HEAD)]].concat()).is_err());
    }

    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let key = DataKey::random();
        prop_assert!(opened(&key, NAME, &noise).is_err());
        let after_a_head = [&sealed(&key, NAME, b"x")[..HEAD], &noise].concat();
        prop_assert!(opened(&key, NAME, &after_a_head).is_err());
    }
}

#[test]
fn chunks_are_refused_in_any_other_order_or_number() {
    let key = DataKey::random();
    let stream = sealed(&key, NAME, &plain(&[true, false, true, false], 10));
    let whole = frames(&stream);
    assert_eq!(whole.len(), 5);
    let of = |order: &[usize]| {
        let chunks = order.iter().flat_map(|n| &stream[whole[*n].clone()]);
        stream[..HEAD].iter().chain(chunks).copied().collect::<Vec<u8>>()
    };
    opened(&key, NAME, &of(&[0, 1, 2, 3, 4])).unwrap();
    for order in [&[][..], &[0], &[0, 1, 2, 3], &[1, 0, 2, 3, 4], &[0, 3, 2, 1, 4], &[0, 0, 1, 2, 3, 4], &[0, 1, 2, 4], &[4]] {
        assert!(matches!(opened(&key, NAME, &of(order)), Err(OpenError::Changed { .. })), "{order:?}");
    }
}

#[test]
fn chunks_and_streams_of_others_are_refused() {
    let (key, other) = (DataKey::random(), DataKey::random());
    let text = plain(&[true, true], 10);
    let stream = sealed(&key, NAME, &text);
    assert!(matches!(opened(&other, NAME, &stream), Err(OpenError::Changed { chunk: 0 })), "another key");
    assert!(matches!(opened(&key, "artifact:a/state", &stream), Err(OpenError::Changed { chunk: 0 })), "another member");
    // The same bytes, sealed again, or as another member: no chunk of theirs fits.
    for (its_key, name) in [(&key, NAME), (&key, "artifact:a/state"), (&other, NAME)] {
        let theirs = sealed(its_key, name, &text);
        assert!(theirs[HEAD..] != stream[HEAD..], "a stream is sealed in another way each time");
        for frame in frames(&stream) {
            let mut mixed = stream.clone();
            mixed[frame.clone()].copy_from_slice(&theirs[frame]);
            assert!(opened(&key, NAME, &mixed).is_err());
        }
    }
}

#[test]
fn zeros_take_no_room_on_either_side() {
    let key = DataKey::random();
    let mut memory = vec![0; 256 * CHUNK_BYTES];
    memory[100 * CHUNK_BYTES] = 1;
    let stream = sealed(&key, NAME, &memory);
    assert!(stream.len() < 3 * CHUNK_BYTES, "{} bytes", stream.len());
    let file: File = tempfile::tempfile().unwrap();
    open(&key, NAME, &mut &stream[..], &file).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), memory.len() as u64);
    assert!(metadata.blocks() * 512 <= 4 * CHUNK_BYTES as u64, "{} blocks", metadata.blocks());
}

#[test]
fn a_data_key_that_was_wrapped_opens_what_it_sealed() {
    let (installation, data) = (InstallationKey::random(), DataKey::random());
    let stream = sealed(&data, NAME, b"of the sandbox");
    let wrapped = serde_json::to_string(&installation.wrap(&data, "artifact:a")).unwrap();
    drop(data);
    let found = installation.unwrap(&serde_json::from_str(&wrapped).unwrap(), "artifact:a").unwrap();
    assert_eq!(opened(&found, NAME, &stream).unwrap(), b"of the sandbox");
}
