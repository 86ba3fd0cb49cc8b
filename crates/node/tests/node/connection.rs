//! Connections into VMs, and out of them.

use crate::fixture::{Fixture, PATIENCE};
use instavm_node_api::{Connections, Destination, Ending, Node, NodeError, VmId, VmStream};
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// A program of the VM that answers each line with what the first argument says and the line.
const ECHO: &str = "cat > /app/echo.py <<'EOF'
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ':' in host else socket.AF_INET
server = socket.create_server((host, port), family=family)
while True:
    one, _ = server.accept()
    for line in one.makefile('rb'):
        one.sendall(host.encode() + b' ' + line)
EOF
";

/// Starts an echo in the VM and waits until it listens.
async fn echo(f: &Fixture, vm: &VmId, host: &str, port: u16) {
    let listening = format!("{port:04X} ");
    let script = format!(
        "{ECHO}python3 /app/echo.py {host} {port} >/dev/null 2>&1 &
        until grep -q ':{listening}.*0A' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done"
    );
    let run = f.bash(vm, &script).await;
    assert_eq!(run.exit_code, 0, "{run:?}");
}

async fn ask(mut stream: VmStream, line: &str) -> String {
    let asking = async {
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    timeout(PATIENCE, asking).await.unwrap()
}

fn kind(error: NodeError) -> ErrorKind {
    match error {
        NodeError::Connection { kind, .. } => kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_found_on_the_loopback_and_on_the_vms_own_address() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let own = f.node.inspect(&vm).await.unwrap().address.unwrap();
    for (host, port) in [("127.0.0.1", 8001), (&*own.to_string(), 8002)] {
        echo(&f, &vm, host, port).await;
        let stream = f.node.connect(&vm, Destination::Local(port)).await.unwrap();
        assert_eq!(ask(stream, "hello\n").await, format!("{host} hello\n"));
    }
    let refused = f.node.connect(&vm, Destination::Local(8003)).await;
    assert_eq!(kind(refused.err().unwrap()), ErrorKind::ConnectionRefused);
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_is_reached() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    for to in [
        Destination::Local(address.port()),
        Destination::Address(address),
    ] {
        let refused = f.node.connect(&vm, to).await;
        assert_eq!(kind(refused.err().unwrap()), ErrorKind::ConnectionRefused);
    }
    let other = f.create("vm_b").await;
    echo(&f, &other, "127.0.0.1", 8001).await;
    let refused = f.node.connect(&vm, Destination::Local(8001)).await;
    assert_eq!(kind(refused.err().unwrap()), ErrorKind::ConnectionRefused);
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_the_vm_and_ends_with_it() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let at = "127.0.0.1:0".parse().unwrap();
    let mut listener = f.node.listen(&vm, at).await.unwrap();
    let port = listener.address().port();
    let again = f.node.listen(&vm, listener.address()).await;
    assert_eq!(kind(again.err().unwrap()), ErrorKind::AddrInUse);
    f.bash(
        &vm,
        &format!("echo from inside > /dev/tcp/127.0.0.1/{port}"),
    )
    .await;
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut text = String::new();
    let reading = stream.read_to_string(&mut text);
    timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert_eq!(text, "from inside\n");

    echo(&f, &vm, "127.0.0.1", 8001).await;
    let mut open = f.node.connect(&vm, Destination::Local(8001)).await.unwrap();
    f.node.terminate(&vm, Ending::Killed).await.unwrap();
    let cut = timeout(PATIENCE, open.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(cut, Ok(1..)), "{cut:?}");
    let over = timeout(PATIENCE, listener.accept()).await.unwrap();
    assert!(matches!(over, Err(NodeError::VmEnded)));
    let gone = f.node.connect(&vm, Destination::Local(8001)).await;
    assert!(matches!(
        gone,
        Err(NodeError::NoSuchVm | NodeError::VmEnded)
    ));
    f.close().await;
}
