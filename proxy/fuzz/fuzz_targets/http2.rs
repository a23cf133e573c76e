#![no_main]

#[expect(dead_code, reason = "each target uses one of the bodies")]
#[path = "../bodies.rs"]
mod bodies;
#[path = "../../src/http/guard/h1.rs"]
mod h1;
#[path = "../../src/http/guard/h2.rs"]
mod h2;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::http2(data));
