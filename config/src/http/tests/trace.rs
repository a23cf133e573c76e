use proptest::prelude::*;

use crate::http::trace::{TraceError, TraceParent};

const GOOD: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_trace_goes_on_with_its_id_and_its_flag() {
    let theirs = TraceParent::parse(GOOD).unwrap();
    assert!(theirs.sampled());
    assert_eq!(theirs.parent_id(), 0xb7ad_6b71_6920_3331u64.to_be_bytes());
    assert_eq!(&theirs.to_bytes(), GOOD);
    let ours = theirs.child([0xab; 8]);
    assert_eq!(&ours.to_bytes(), b"00-0af7651916cd43dd8448eb211c80319c-abababababababab-01");
}

#[test]
fn only_known_flags_are_passed_on() {
    for (theirs, ours) in [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03"), ("fc", "00")]
    {
        let text = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{theirs}");
        let child = TraceParent::parse(text.as_bytes()).unwrap().child([1; 8]);
        assert!(child.to_bytes().ends_with(ours.as_bytes()), "{theirs}");
    }
}

#[test]
fn a_later_version_is_read_as_far_as_it_is_known() {
    for text in [
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-will-be-like",
        "fe-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
    ] {
        assert_eq!(&TraceParent::parse(text.as_bytes()).unwrap().to_bytes(), GOOD, "{text}");
    }
}

#[test]
fn what_is_invalid_is_refused() {
    for (text, error) in [
        ("", TraceError::Shape),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0", TraceError::Shape),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-", TraceError::Shape),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ", TraceError::Shape),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.x", TraceError::Shape),
        ("00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceError::Shape),
        ("00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", TraceError::Shape),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceError::Version),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", TraceError::Zero),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", TraceError::Zero),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", TraceError::Digit),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01", TraceError::Digit),
        ("0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceError::Digit),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0.", TraceError::Digit),
    ] {
        assert_eq!(TraceParent::parse(text.as_bytes()), Err(error), "{text:?}");
    }
}

#[test]
fn two_headers_are_none() {
    assert!(TraceParent::of([GOOD]).is_some());
    assert_eq!(TraceParent::of([GOOD, GOOD]), None);
    assert_eq!(TraceParent::of([]), None);
    assert_eq!(TraceParent::of([&GOOD[1..]]), None);
}

proptest! {
    #[test]
    fn what_is_made_can_be_read(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) {
        let made = TraceParent::new(trace_id, parent_id, sampled);
        prop_assert_eq!(TraceParent::parse(&made.to_bytes()), Ok(made));
        prop_assert_eq!(made.sampled(), sampled);
    }

    #[test]
    fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = TraceParent::parse(&text);
    }
}

#[test]
fn zero_is_no_random_id() {
    let made = TraceParent::new([0; 16], [0; 8], false);
    assert_eq!(TraceParent::parse(&made.to_bytes()), Ok(made));
    assert!(TraceParent::parse(&made.child([0; 8]).to_bytes()).is_ok());
}
