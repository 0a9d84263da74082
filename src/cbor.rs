//! What minicbor doesn't have: lists that end at their bound while they are decoded.

use minicbor::{Decode, Decoder, decode::Error};

/// A list of at most `MOST`, for `#[cbor(decode_with = "…")]`, where bytes are others' and a later look at its length comes too late: what takes three bytes in
/// a message takes ten to fifty times as many in memory.
pub fn at_most<'b, const MOST: usize, C, T: Decode<'b, C>>(
    d: &mut Decoder<'b>,
    ctx: &mut C,
) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    for item in d.array_iter_with(ctx)? {
        if list.len() == MOST {
            return Err(Error::message(format!("more than {MOST} in a list")));
        }
        list.push(item?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_at_its_bound_whatever_it_says_of_its_length() {
        let list = |bytes: &[u8]| at_most::<2, _, u8>(&mut Decoder::new(bytes), &mut ());
        assert_eq!(list(b"\x80").expect("none"), [0; 0]);
        assert_eq!(list(b"\x82\x01\x02").expect("two"), [1, 2]);
        assert_eq!(list(b"\x9f\x01\x02\xff").expect("two, without a length"), [1, 2]);
        for long in [
            &b"\x83\x01\x02\x03"[..],
            b"\x9f\x01\x02\x03\xff",
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03",
        ] {
            assert!(list(long).expect_err("is too long").to_string().contains("more than 2 in a list"));
        }
        assert!(list(b"\x82\x01").is_err(), "cut");
    }
}
