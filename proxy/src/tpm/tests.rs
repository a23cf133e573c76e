use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::device::{Answer, command};
use super::*;

#[test]
fn a_command_has_the_bytes_that_the_specification_gives() {
    let bytes = command(Code::NV_READ, &[0x01c0_0002, 0x01c0_0002], &[Auth::EMPTY], &[0, 16, 0, 0]);
    let expected: &[u8] = &[
        0x80, 0x02, 0, 0, 0, 35, 0, 0, 0x01, 0x4e, 0x01, 0xc0, 0, 2, 0x01, 0xc0, 0, 2, 0, 0, 0, 9, 0x40, 0,
        0, 9, 0, 0, 0, 0, 0, 0, 16, 0, 0,
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn a_certificate_ends_where_it_says() {
    assert_eq!(trimmed(vec![0x30, 0x82, 0, 2, 1, 2, 0xff, 0xff]), [0x30, 0x82, 0, 2, 1, 2]);
    assert_eq!(trimmed(vec![0x30, 0x82, 0, 9, 1]), [0x30, 0x82, 0, 9, 1]);
    assert!(trimmed(Vec::new()).is_empty());
}

/// Whatever stands at the socket's other end, an enrollment fails with words and in time.
#[test]
fn a_device_that_talks_nonsense_is_no_tpm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let config = Config { device: path.clone(), ..Config::default() };
    assert!(matches!(Tpm::open(&config), Err(Fault::Device(..))));
    let listener = UnixListener::bind(&path).unwrap();
    let refusal = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 1];
    let answers: [(&[u8], &str); 4] = [
        (&[0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], "invalid data"),
        (&[0x80, 0x01, 0, 0, 0, 9, 0, 0, 0, 0], "invalid data"),
        (&[0x80], "end of file"),
        (&refusal, "TPM2_CreatePrimary with response code 0x101"),
    ];
    for (answer, why) in answers {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut command = [0; 4096];
                while stream.read(&mut command).is_ok_and(|read| read > 0) && stream.write_all(answer).is_ok()
                {
                    if answer.len() < refusal.len() {
                        // What it has still to say is heard to its end: a socket that breaks is another failure.
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                        while stream.read(&mut command).is_ok_and(|read| read > 0) {}
                        break;
                    }
                }
            });
            let failed = Tpm::open(&config).err().unwrap().to_string();
            assert!(failed.contains(why), "{failed}");
        });
    }
}

proptest! {
    #[test]
    fn no_answer_makes_the_parser_stumble(mut bytes in proptest::collection::vec(any::<u8>(), 10..100), honest: bool) {
        if honest {
            let length = bytes.len() as u32;
            bytes[..2].copy_from_slice(&[0x80, 0x02]);
            bytes[2..6].copy_from_slice(&length.to_be_bytes());
            bytes[6..10].fill(0);
        }
        for code in [Code::CREATE_PRIMARY, Code::QUOTE] {
            if let Ok(answer) = Answer::parse(code, bytes.clone()) {
                let _ = answer.parameters("it").map(|mut reader| reader.sized(64).map(<[u8]>::len));
            }
        }
    }
}
