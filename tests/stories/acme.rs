//! Certificates by ACME, from an authority of another make: pebble, the one that Let's Encrypt tests clients with.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use reqwest::Certificate;
use reqwest::blocking::Client;

use crate::support::{Service, free_address, wait_for};

/// The program, in Debian's package of that name.
const PEBBLE: &str = "pebble";

/// An authority; killed when dropped.
struct Authority {
    child: Child,
    directory: String,
    manage: String,
    client: Client,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Authority {
    /// Starts one that makes handshakes with `tls_port` to prove names; `None` when there is no such program here.
    fn start(dir: &Path, tls_port: &str) -> Option<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
        fs::write(dir.join("ca.key"), made.signing_key.serialize_pem()).unwrap();
        let (listen, manage) = (free_address(), free_address());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": listen,
            "managementListenAddress": manage,
            "certificate": dir.join("ca.pem"),
            "privateKey": dir.join("ca.key"),
            "httpPort": 1,
            "tlsPort": tls_port.parse::<u16>().unwrap(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        fs::write(dir.join("pebble.json"), config.to_string()).unwrap();
        let mut command = Command::new(PEBBLE);
        // At its own pace; nonces are refused now and then all the same, as by the real ones.
        command.arg("-config").arg(dir.join("pebble.json")).env("PEBBLE_VA_NOSLEEP", "1").env_remove("HTTPS_PROXY");
        let log = fs::File::create(dir.join("pebble.log")).unwrap();
        let child = command.stdout(log).stderr(Stdio::null()).spawn().ok()?;
        let trusted = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
        let client = Client::builder().no_proxy().tls_certs_only([trusted]).build().unwrap();
        let authority =
            Self { child, directory: format!("https://{listen}/dir"), manage: format!("https://{manage}"), client };
        wait_for("the authority", || authority.client.get(&authority.directory).send().ok());
        Some(authority)
    }

    /// The certificate that everything it issues leads to.
    fn root(&self) -> Certificate {
        let pem = self.client.get(format!("{}/roots/0", self.manage)).send().unwrap().bytes().unwrap();
        Certificate::from_pem(&pem).unwrap()
    }
}

#[test]
fn a_node_gets_its_certificate_by_itself_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let listen = free_address();
    let port = listen.split_once(':').unwrap().1;
    let Some(authority) = Authority::start(dir, port) else {
        eprintln!("{PEBBLE} is not installed: certificates by ACME are not tried");
        return;
    };
    let config = dir.join("waxwing.toml");
    let text = format!(
        "listen = {listen:?}\ndata = {:?}\n[tls.acme]\ndomains = [\"localhost\"]\ncontact = [\"mailto:ops@localhost\"]\n\
         directory_url = {:?}\nca_file = {:?}\n",
        dir.join("data"),
        authority.directory,
        dir.join("ca.pem"),
    );
    fs::write(&config, text).unwrap();
    let service = Service::serve(&config);
    let believes = |root: Certificate| Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let root = authority.root();
    let client = believes(root.clone());
    let ask = |client: &Client| client.get(format!("https://localhost:{port}/v1/info")).send().ok();
    let answer = wait_for("the certificate", || ask(&client));
    assert!(answer.status().is_success());
    let kept = fs::read_to_string(dir.join("data/acme/certificate.pem")).unwrap();
    assert!(service.stop().success());

    // With the authority gone: what was got is there.
    drop(authority);
    let service = Service::serve(&config);
    let answer = wait_for("the same certificate", || ask(&believes(root.clone())));
    assert!(answer.status().is_success());
    assert_eq!(fs::read_to_string(dir.join("data/acme/certificate.pem")).unwrap(), kept);
    drop(service);
}
