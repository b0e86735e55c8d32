//! NBD clients that send nonsense: each gets the protocol's error or a closed connection, and nobody else notices.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use crate::harness::{
    Client, Endpoint, MIB, Mirror, Stream, assert_says, finish, kind, pattern, python, request, wait_until,
};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const SIZE: u64 = 8 * MIB;

/// A well-behaved client is served, now.
#[track_caller]
fn assert_serves(mirror: &Mirror, seed: u64) {
    for endpoint in [mirror.unix(), mirror.tcp()] {
        let mut client = Client::go(&endpoint, "vol0").expect("a handshake");
        client.write(4096, &pattern(seed, 4096)).expect("a write");
        assert!(client.read(4096, 4096).expect("a read") == pattern(seed, 4096));
        client.disconnect();
    }
}

/// Connects and sends bytes after the greeting, whatever they are; the server may close at any time.
fn send_raw(endpoint: &Endpoint, bytes: &[u8]) -> Stream {
    let mut stream = endpoint.connect().expect("connect");
    if let Err(error) = stream.write_all(bytes) {
        eprintln!("the server closed before all was sent: {error}");
    }
    stream
}

/// Client flags "fixed newstyle, no zeroes", then an option of any number, stated length and data.
fn option(number: u32, stated: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(b"IHAVEOPT");
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&stated.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn garbage_instead_of_a_handshake() {
    let mirror = Mirror::start("always", SIZE);
    for endpoint in [mirror.unix(), mirror.tcp()] {
        // The first is a client that speaks the newstyle before it was fixed: four bytes of flags, all zero.
        for garbage in
            [vec![0; 4], pattern(1, 65_536), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), vec![0xff; 4096]]
        {
            let mut stream = send_raw(&endpoint, &garbage);
            stream.set_answer_limit(Duration::from_secs(20)).unwrap();
            stream.read_to_close().expect("the server closes on garbage");
        }
    }
    assert_serves(&mirror, 1);
}

#[test]
fn half_sent_handshakes_hold_nobody_up() {
    let mirror = Mirror::start("always", SIZE);
    let go = option(7, 14, b"\0\0\0\x04vol0\0\0\0\0\0\0");
    let held: Vec<Stream> = (0..go.len()).map(|len| send_raw(&mirror.unix(), &go[..len])).collect();
    assert_serves(&mirror, 2);
    drop(held);
    assert_serves(&mirror, 3);
}

#[test]
fn half_sent_requests_hold_nobody_up() {
    let mirror = Mirror::start("always", SIZE);
    let before = pattern(4, MIB as usize);
    Client::go(&mirror.unix(), "vol0").unwrap().write(MIB, &before).unwrap();
    let mut held = Vec::new();
    for keep in [3, 27, 28, 28 + 512, 28 + 4096 * 20] {
        let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
        let mut request = request(0, kind::WRITE, 9, MIB, MIB as u32);
        request.extend_from_slice(&vec![0xbb; MIB as usize]);
        client.stream.write_all(&request[..keep]).unwrap();
        held.push(client);
    }
    assert_serves(&mirror, 4);
    drop(held);
    assert_serves(&mirror, 5);
    // A write of which only a part arrived never happened.
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    assert!(client.read(MIB, MIB as usize).unwrap() == before, "a half-sent write left its traces");
    mirror.assert_in_step();
}

#[test]
fn an_unknown_export_is_answered_with_those_that_exist() {
    let mirror = Mirror::start("always", SIZE);
    let error = Client::go(&mirror.unix(), "vol7").err().expect("there is no vol7").to_string();
    assert_says(&error, &["0x80000006", "vol7", "vol0"]);
    // libnbd shows the server's message only when it debugs.
    let mut nbdinfo = Command::new("nbdinfo");
    nbdinfo.arg(mirror.tcp().uri("vol7")).env("LIBNBD_DEBUG", "1");
    let finished = finish(nbdinfo, Duration::from_secs(20));
    assert!(!finished.status.success());
    assert_says(&finished.stderr, &["vol7", "vol0"]);
    // EXPORT_NAME has no way to say why: the connection ends.
    assert!(Client::export_name(&mirror.unix(), "vol7").is_err());
    assert_serves(&mirror, 6);
}

#[test]
fn unknown_and_malformed_options_leave_the_handshake_alive() {
    let mirror = Mirror::start("always", SIZE);
    // An unknown option; GO whose name is longer than its data; GO with no data; INFO with a name that isn't UTF-8.
    let cases: [(u32, &[u8]); 4] =
        [(77, b"xyz"), (7, b"\xff\xff\xff\xff\0\0"), (7, b""), (6, b"\0\0\0\x02\xff\xfe\0\0")];
    for (number, data) in cases {
        let mut stream = send_raw(&mirror.unix(), &option(number, data.len() as u32, data));
        let mut greeting_and_reply = [0; 18 + 20];
        std::io::Read::read_exact(&mut stream, &mut greeting_and_reply).expect("a reply to a bad option");
        let reply = &greeting_and_reply[18..];
        assert_eq!(reply[12] & 0x80, 0x80, "option {number} with {data:02x?} gets an error: {reply:02x?}");
        let len = u32::from_be_bytes(reply[16..20].try_into().unwrap());
        std::io::Read::read_exact(&mut stream, &mut vec![0; len as usize]).expect("the reply's message");
        // ABORT (2) is acknowledged on the same connection.
        stream.write_all(&option(2, 0, b"")[4..]).unwrap();
        let mut acknowledged = [0; 20];
        std::io::Read::read_exact(&mut stream, &mut acknowledged).expect("an answer to ABORT");
        assert_eq!(acknowledged[12..16], [0, 0, 0, 1], "option {number}: the handshake lives on");
    }
    // An option that claims to be huge is not waited for: whatever comes, the server stays free.
    let _held = send_raw(&mirror.unix(), &option(7, u32::MAX, b"abc"));
    assert_serves(&mirror, 7);
}

#[test]
fn requests_out_of_range_get_an_error_and_the_connection_lives() {
    let mirror = Mirror::start("always", SIZE);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    let places = [(SIZE, 4096), (SIZE - 512, 1024), (u64::MAX - 511, 512), (!511, 4096), (1 << 62, 4096)];
    for (offset, len) in places {
        for kind in [kind::READ, kind::TRIM, kind::CACHE] {
            let error = client.call(0, kind, offset, len, &[]).unwrap();
            assert_eq!(error, EINVAL, "request {kind} at {offset}+{len}");
        }
        // For what adds data the protocol prefers ENOSPC.
        let error = client.call(0, kind::WRITE, offset, len, &vec![7; len as usize]).unwrap();
        assert!([EINVAL, ENOSPC].contains(&error), "a write at {offset}+{len} got {error}");
        let error = client.call(0, kind::WRITE_ZEROES, offset, len, &[]).unwrap();
        assert!([EINVAL, ENOSPC].contains(&error), "zeroes at {offset}+{len} got {error}");
    }
    assert!(client.read(SIZE - 512, 512).unwrap().iter().all(|&byte| byte == 0), "no part was written");
    client.write(SIZE - 512, &pattern(8, 512)).expect("the connection lives");
}

#[test]
fn misaligned_requests_get_einval_and_the_connection_lives() {
    let mirror = Mirror::start("always", SIZE);
    let mut client = Client::go(&mirror.tcp(), "vol0").unwrap();
    for (offset, len) in [(1, 512), (0, 511), (4095, 2), (512, 513)] {
        for kind in [kind::READ, kind::TRIM, kind::WRITE_ZEROES] {
            assert_eq!(client.call(0, kind, offset, len, &[]).unwrap(), EINVAL, "request {kind} at {offset}+{len}");
        }
        let error = client.call(0, kind::WRITE, offset, len, &vec![7; len as usize]).unwrap();
        assert_eq!(error, EINVAL, "a write at {offset}+{len}");
    }
    client.write(512, &pattern(9, 512)).expect("the connection lives");
    // The same through structured replies, where errors have another form.
    python(
        r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
import errno
for call in (lambda: h.pread(100, 1), lambda: h.pread(512, 1 << 40), lambda: h.pwrite(b"x" * 511, 0), lambda: h.trim(512, 7)):
    try:
        call()
        sys.exit("an error was due")
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, error
    assert len(h.pread(512, 512)) == 512
h.shutdown()
"#,
        &[&mirror.unix().uri("vol0")],
    );
}

#[test]
fn oversized_requests_get_an_error_and_the_connection_lives() {
    let mirror = Mirror::start("always", 128 * MIB);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    let over = 32 * MIB as u32 + 512;
    let error = client.call(0, kind::READ, 0, over, &[]).unwrap();
    assert!([EINVAL, EOVERFLOW].contains(&error), "an oversized read got {error}");
    let error = client.call(0, kind::WRITE, 0, over, &vec![0xcc; over as usize]).unwrap();
    assert!([EINVAL, EOVERFLOW].contains(&error), "an oversized write got {error}");
    assert!(client.read(0, 4096).unwrap().iter().all(|&byte| byte == 0), "nothing of it was written");
    // Requests without a payload have no such bound.
    client.succeed(0, kind::WRITE_ZEROES, 0, 100 * MIB as u32, &[]).expect("zeroes over 100 MiB");
    client.succeed(0, kind::TRIM, 0, 128 * MIB as u32, &[]).expect("a trim of the whole volume");
    client.write(0, &pattern(10, 4096)).expect("the connection lives");
    mirror.assert_in_step();
}

#[test]
fn unknown_commands_and_flags_get_einval_and_the_connection_lives() {
    let mirror = Mirror::start("always", SIZE);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    for unknown in [8, 9, 99, u16::MAX] {
        assert_eq!(client.call(0, unknown, 0, 4096, &[]).unwrap(), EINVAL, "command {unknown}");
    }
    assert_eq!(client.call(1 << 13, kind::READ, 0, 512, &[]).unwrap(), EINVAL, "an unknown flag on a read");
    assert_eq!(client.call(1 << 13, kind::WRITE, 0, 512, &[1; 512]).unwrap(), EINVAL, "an unknown flag on a write");
    // BLOCK_STATUS needs a negotiated context.
    assert_eq!(client.call(0, 7, 0, 4096, &[]).unwrap(), EINVAL, "block status without structured replies");
    assert!(client.read(0, 512).unwrap().iter().all(|&byte| byte == 0));
    client.write(0, &pattern(11, 512)).expect("the connection lives");
}

#[test]
fn a_bad_magic_in_transmission_closes_the_connection() {
    let mirror = Mirror::start("always", SIZE);
    for endpoint in [mirror.unix(), mirror.tcp()] {
        let mut client = Client::go(&endpoint, "vol0").unwrap();
        client.write(0, &pattern(12, 4096)).unwrap();
        client.stream.write_all(&[0x5a; 28]).unwrap();
        let rest = client.stream.read_to_close().expect("the server closes");
        assert!(rest.is_empty(), "no reply to what is no request: {rest:02x?}");
    }
    assert_serves(&mirror, 13);
}

#[test]
fn empty_requests_do_no_harm() {
    // The protocol leaves zero lengths undefined: any answer will do, or a closed connection.
    let mirror = Mirror::start("always", SIZE);
    for kind in [kind::READ, kind::WRITE, kind::TRIM, kind::WRITE_ZEROES, kind::CACHE] {
        let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
        let _ = client.call(0, kind, 0, 0, &[]);
    }
    assert_serves(&mirror, 14);
    mirror.assert_in_step();
}

#[test]
fn more_connections_than_allowed() {
    let mirror = Mirror::start("always", SIZE);
    let mut first = Client::go(&mirror.unix(), "vol0").unwrap();
    // One too many may be closed, or left waiting.
    let held: Vec<_> = (0..400).map_while(|_| Client::go(&mirror.unix(), "vol0").ok()).collect();
    assert!(held.len() >= 16, "only {} connections were served together", held.len());
    first.write(0, &pattern(15, 4096)).expect("those that are served stay served");
    drop(held);
    wait_until("a new client is served once others have gone", Duration::from_secs(20), || {
        Client::go(&mirror.unix(), "vol0").is_ok_and(|mut client| client.write(0, &pattern(16, 4096)).is_ok())
    });
}

#[test]
fn a_client_that_never_reads_its_replies() {
    let mirror = Mirror::start("always", SIZE);
    let mut greedy = Client::go(&mirror.unix(), "vol0").unwrap();
    // Far more than the sockets' buffers and the server's memory for replies hold.
    let requests: Vec<u8> = (0..400).flat_map(|cookie| request(0, kind::READ, cookie, 0, MIB as u32)).collect();
    greedy.stream.write_all(&requests).unwrap();
    assert_serves(&mirror, 17);
    drop(greedy);
    assert_serves(&mirror, 18);
}
