//! Certificates: no bytes panic, and nobody is let in by any but the two that he was given.
//!
//! Input: a chain of certificates in DER, leaf first, each after its length in two bytes, big-endian.
#![no_main]

use std::cell::RefCell;
use std::fmt::Write as _;

use fieldpost_fuzz::hub;
use fieldpost_hub::Hub;
use fieldpost_hub::auth::ClientCertificate;
use fieldpost_hub::identity::{AuthenticationSpec, DeviceSpec, Thumbprints};
use fieldpost_model::Identity;
use libfuzzer_sys::fuzz_target;
use ring::digest;
use tokio::runtime::Runtime;

/// Good until the year 2126; nobody has their keys any more.
const ROOT: &[u8] = include_bytes!("../certificates/root.der");
const MIDDLE: &[u8] = include_bytes!("../certificates/middle.der");
const LEAF: &[u8] = include_bytes!("../certificates/leaf.der");
const OWN: &[u8] = include_bytes!("../certificates/own.der");

thread_local! {
    static WORLD: RefCell<(Runtime, Hub)> = RefCell::new(world());
}

fuzz_target!(|input: &[u8]| {
    let chain = certificates(input);
    let Some(certificate) = ClientCertificate::new(chain.iter().copied()) else {
        return;
    };
    WORLD.with_borrow(|(runtime, hub)| {
        for (device, given) in [("dev1", LEAF), ("dev2", OWN)] {
            let identity = Identity::of_device(device.parse().expect("an id"));
            let access = hub.access();
            let outcome = runtime.block_on(access.authenticate_certificate(
                &identity,
                "hub.localhost",
                &certificate,
            ));
            assert!(outcome.is_err() || chain[0] == given, "{device}");
        }
        // Whatever is no certificate of an authority is refused, and what is one is there already.
        let added = runtime.block_on(hub.authorities().add("another", chain[0], false));
        if added.is_ok() {
            let removed = runtime.block_on(hub.authorities().remove("another"));
            assert!(removed.is_ok());
        }
    });
});

fn certificates(mut input: &[u8]) -> Vec<&[u8]> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (certificate, behind) = rest.split_at(length);
        chain.push(certificate);
        input = behind;
    }
    chain
}

fn world() -> (Runtime, Hub) {
    let (runtime, hub) = hub();
    runtime.block_on(async {
        let authorities = hub.authorities();
        authorities
            .add("root", ROOT, true)
            .await
            .expect("an authority");
        let digest = digest::digest(&digest::SHA256, OWN);
        let mut thumbprint = String::new();
        for byte in digest.as_ref() {
            write!(thumbprint, "{byte:02X}").expect("a string takes everything");
        }
        for (id, authentication) in [
            ("dev1", AuthenticationSpec::CertificateAuthority),
            (
                "dev2",
                AuthenticationSpec::SelfSigned(Thumbprints {
                    primary: Some(thumbprint),
                    secondary: None,
                }),
            ),
        ] {
            let mut spec = DeviceSpec::new(id.parse().expect("an id"));
            spec.authentication = authentication;
            hub.registry().create(spec).await.expect("a device");
        }
        // Else nothing would be let in, and nothing shown.
        for (id, chain) in [("dev1", &[LEAF, MIDDLE][..]), ("dev2", &[OWN])] {
            let identity = Identity::of_device(id.parse().expect("an id"));
            let certificate = ClientCertificate::new(chain.iter().copied()).expect("not empty");
            let access = hub.access();
            access
                .authenticate_certificate(&identity, "hub.localhost", &certificate)
                .await
                .expect("it was given");
        }
    });
    (runtime, hub)
}
