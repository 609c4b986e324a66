//! The HTTP layer: what a request is, what a connection bears, how many there may be.

use serde_json::json;

use crate::support::{Answer, Client, Lab, VERSION};

crate::on_both![
    a_200_has_these_lines,
    a_204_has_no_length,
    a_fault_has_a_length,
    methods_are_get_put_patch_and_delete,
    versions_are_1_0_and_1_1,
    a_request_line_has_three_parts,
    a_target_is_not_empty_and_is_text,
    a_target_may_name_a_host,
    a_target_that_is_no_path_is_the_root,
    a_query_belongs_to_the_path,
    requests_may_be_pipelined,
    an_error_drops_what_was_not_answered,
    a_request_may_come_in_pieces,
    a_connection_goes_on_after_a_bad_request_line,
    a_bad_header_leaves_the_connection_among_headers,
    a_header_has_a_colon,
    a_header_is_text,
    a_line_fits_in_a_kilobyte,
    there_may_be_many_headers,
    a_length_is_a_number_of_32_bits,
    a_length_may_be_written_in_any_case,
    a_body_has_a_limit,
    the_limit_of_a_body_can_be_set,
    a_body_at_the_limit_is_taken,
    a_body_longer_than_its_length_is_the_next_request,
    a_body_is_asked_for,
    an_encoding_must_be_acceptable,
    unknown_headers_are_passed_over,
    a_get_has_no_body,
    a_delete_has_no_body,
    a_put_and_a_patch_have_a_body,
    the_eleventh_connection_is_refused,
    a_closed_connection_makes_room,
    connections_are_served_in_turn,
    a_half_closed_connection_is_closed,
];

fn exchange(lab: &Lab, bytes: &[u8]) -> Answer {
    let vmm = lab.start();
    vmm.connect().exchange(bytes)
}

fn version() -> serde_json::Value {
    json!({ "firecracker_version": VERSION })
}

const GET: &[u8] = b"GET /version HTTP/1.1\r\n\r\n";

fn a_200_has_these_lines(lab: &Lab) {
    let answer = exchange(lab, GET);
    assert_eq!(
        answer.head,
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: 32"
    );
    assert_eq!(answer.body, r#"{"firecracker_version":"1.16.1"}"#);
}

fn a_204_has_no_length(lab: &Lab) {
    let answer = lab.start().put("/mmds", json!({}));
    assert_eq!(answer.head, "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive");
}

fn a_fault_has_a_length(lab: &Lab) {
    let answer = lab.start().get("/nope");
    assert_eq!(
        answer.head,
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: 65"
    );
    assert_eq!(answer.body, r#"{"fault_message":"Invalid request method and/or path: GET nope."}"#);
}

fn methods_are_get_put_patch_and_delete(lab: &Lab) {
    let vmm = lab.start();
    for method in ["POST", "HEAD", "OPTIONS", "get", "TRACE"] {
        let request = format!("{method} / HTTP/1.1\r\n\r\n");
        vmm.connect()
            .exchange(request.as_bytes())
            .http_error("Invalid HTTP Method: Unsupported HTTP method.");
    }
}

fn versions_are_1_0_and_1_1(lab: &Lab) {
    let vmm = lab.start();
    vmm.connect().exchange(b"GET /version HTTP/1.0\r\n\r\n").says(version());
    for version in ["HTTP/2", "HTTP/1.1 ", "http/1.1", "HTTP/0.9"] {
        let request = format!("GET / {version}\r\n\r\n");
        vmm.connect()
            .exchange(request.as_bytes())
            .http_error("Invalid HTTP Version: Unsupported HTTP version.");
    }
}

fn a_request_line_has_three_parts(lab: &Lab) {
    let vmm = lab.start();
    for line in ["hello", "GET /", "GET", "", "GET\t/version\tHTTP/1.1"] {
        vmm.connect().exchange(format!("{line}\r\n\r\n").as_bytes()).http_error("Invalid request.");
    }
}

fn a_target_is_not_empty_and_is_text(lab: &Lab) {
    let vmm = lab.start();
    vmm.connect().exchange(b"GET  HTTP/1.1\r\n\r\n").http_error("Invalid URI: Empty URI not allowed.");
    vmm.connect()
        .exchange(b"GET /\xff HTTP/1.1\r\n\r\n")
        .http_error("Invalid URI: Cannot parse URI as UTF-8.");
}

fn a_target_may_name_a_host(lab: &Lab) {
    let vmm = lab.start();
    vmm.connect().exchange(b"GET http://localhost/version HTTP/1.1\r\n\r\n").says(version());
    let answer = vmm.connect().exchange(b"GET http://localhost HTTP/1.1\r\n\r\n");
    assert_eq!(answer.value()["id"], "anon");
}

fn a_target_that_is_no_path_is_the_root(lab: &Lab) {
    let vmm = lab.start();
    for target in ["version", "*", "https://localhost/version"] {
        let answer = vmm.connect().exchange(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!(answer.value()["id"], "anon", "{target}");
    }
}

fn a_query_belongs_to_the_path(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/version?x=1").fault("Invalid request method and/or path: GET version?x=1.");
    vmm.get("/%76ersion").fault("Invalid request method and/or path: GET %76ersion.");
}

fn requests_may_be_pipelined(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    client.write(&[GET, b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", GET].concat());
    client.answer("the first").expect("an answer").says(version());
    client.answer("the second").expect("an answer").done();
    client.answer("the third").expect("an answer").says(version());
}

fn an_error_drops_what_was_not_answered(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    let put = b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
    client
        .exchange(&[put, b"NOPE / HTTP/1.1\r\n\r\n".as_slice(), GET].concat())
        .http_error("Invalid HTTP Method: Unsupported HTTP method.");
    vmm.patch("/mmds", json!({})).fault("MMDS error: The MMDS data store is not initialized.");
}

fn a_request_may_come_in_pieces(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    for piece in
        [b"PUT /mm".as_slice(), b"ds HTTP/1.1\r", b"\nContent-Le", b"ngth: 7\r\n\r", b"\n{\"a\"", b":1"]
    {
        client.write(piece);
        vmm.get("/version").says(version());
    }
    client.exchange(b"}").done();
    vmm.get("/mmds").says(json!({ "a": 1 }));
}

fn a_connection_goes_on_after_a_bad_request_line(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    client.exchange(b"NOPE / HTTP/1.1\r\n\r\n").http_error("Invalid HTTP Method: Unsupported HTTP method.");
    client.exchange(GET).says(version());
}

fn a_bad_header_leaves_the_connection_among_headers(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    client
        .exchange(b"GET /version HTTP/1.1\r\nnonsense\r\n\r\n")
        .http_error("Invalid header. Reason: Header is incorrectly formatted. Key: nonsense");
    client
        .exchange(GET)
        .http_error("Invalid header. Reason: Header is incorrectly formatted. Key: GET /version HTTP/1.1");
    client.exchange(b"x: y\r\n\r\n").says(version());
    client.exchange(GET).says(version());
}

fn a_header_has_a_colon(lab: &Lab) {
    exchange(lab, b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n")
        .http_error("Invalid header. Reason: Header is incorrectly formatted. Key: Host localhost");
}

fn a_header_is_text(lab: &Lab) {
    exchange(lab, b"GET / HTTP/1.1\r\nX: \xff\r\n\r\n").http_error(
        "Invalid header. Reason: Header contains invalid characters. Key: invalid utf-8 sequence of 1 bytes from index \
         3",
    );
}

fn a_line_fits_in_a_kilobyte(lab: &Lab) {
    let vmm = lab.start();
    vmm.connect().exchange(&[b'a'; 1024]).http_error("Invalid request.");
    let path = "a".repeat(900);
    vmm.get(&format!("/{path}")).fault(&format!("Invalid request method and/or path: GET {path}."));
    let mut request = b"GET /version HTTP/1.1\r\nX: ".to_vec();
    request.extend([b'x'; 900]);
    request.extend(b"\r\n\r\n");
    vmm.connect().exchange(&request).says(version());
}

fn there_may_be_many_headers(lab: &Lab) {
    let headers: String = (0..300).map(|number| format!("X{number}: 1\r\n")).collect();
    exchange(lab, format!("GET /version HTTP/1.1\r\n{headers}\r\n").as_bytes()).says(version());
}

fn a_length_is_a_number_of_32_bits(lab: &Lab) {
    let vmm = lab.start();
    for length in ["x", "-1", "4294967296", "", "1.5"] {
        let request = format!("PUT /mmds HTTP/1.1\r\nContent-Length:{length}\r\n\r\n");
        let why = format!("Invalid header. Reason: Invalid value. Key:Content-Length; Value:{length}");
        vmm.connect().exchange(request.as_bytes()).http_error(&why);
    }
}

fn a_length_may_be_written_in_any_case(lab: &Lab) {
    let vmm = lab.start();
    for header in ["content-length:2", "CONTENT-LENGTH: 2", " Content-Length : 2 ", "Content-Length: +2"] {
        let request = format!("PUT /mmds HTTP/1.1\r\n{header}\r\n\r\n{{}}");
        vmm.connect().exchange(request.as_bytes()).done();
    }
}

fn a_body_has_a_limit(lab: &Lab) {
    exchange(lab, b"PUT /mmds HTTP/1.1\r\nContent-Length: 51201\r\n\r\n")
        .http_error("Request payload with size 51201 is larger than the limit of 51200 allowed by server.");
}

fn the_limit_of_a_body_can_be_set(lab: &Lab) {
    let vmm = lab.start_with(&["--http-api-max-payload-size", "10"]);
    vmm.connect()
        .exchange(b"PUT /mmds HTTP/1.1\r\nContent-Length: 11\r\n\r\n")
        .http_error("Request payload with size 11 is larger than the limit of 10 allowed by server.");
    vmm.put("/mmds", json!({ "a": "bc" })).done();
}

fn a_body_at_the_limit_is_taken(lab: &Lab) {
    lab.start().put("/mmds", json!("x".repeat(51_198))).done();
}

fn a_body_longer_than_its_length_is_the_next_request(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    let request = b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}x y z\r\n\r\n";
    client.exchange(request).http_error("Invalid HTTP Method: Unsupported HTTP method.");
    client.exchange(GET).says(version());
}

fn a_body_is_asked_for(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    let head = b"PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let answer = client.exchange(head);
    assert_eq!(answer.head, "HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive");
    client.exchange(b"{}").done();
}

fn an_encoding_must_be_acceptable(lab: &Lab) {
    let vmm = lab.start();
    for (value, why) in [
        ("identity;q=0", "Invalid value. Key:Accept-Encoding; Value:identity;q=0"),
        ("*;q=0", "Invalid value. Key:Accept-Encoding; Value:*;q=0"),
    ] {
        let request = format!("GET /version HTTP/1.1\r\nAccept-Encoding: {value}\r\n\r\n");
        vmm.connect().exchange(request.as_bytes()).http_error(&format!("Invalid header. Reason: {why}"));
    }
    for value in ["gzip", "*;q=0, identity"] {
        let request = format!("GET /version HTTP/1.1\r\nAccept-Encoding: {value}\r\n\r\n");
        vmm.connect().exchange(request.as_bytes()).says(version());
    }
}

fn unknown_headers_are_passed_over(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    let request =
        b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: image/png\r\n: y\r\n\r\n";
    client.exchange(request).says(version());
    client.exchange(GET).says(version());
}

fn a_get_has_no_body(lab: &Lab) {
    lab.start().send("GET", "/version", Some("{}")).fault("GET request cannot have a body.");
}

fn a_delete_has_no_body(lab: &Lab) {
    lab.start().send("DELETE", "/drives/root", Some("{}")).fault("Empty Delete request.");
}

fn a_put_and_a_patch_have_a_body(lab: &Lab) {
    let vmm = lab.start();
    vmm.send("PUT", "/machine-config", None).fault("Empty PUT request.");
    vmm.send("PATCH", "/machine-config", None).fault("Empty PATCH request.");
    vmm.send("PUT", "/nope", Some("")).fault("Empty PUT request.");
}

fn the_eleventh_connection_is_refused(lab: &Lab) {
    let vmm = lab.start();
    // the lab's own connection is the first
    let mut others: Vec<Client> = (0..9).map(|_| vmm.connect()).collect();
    for other in &mut others {
        other.exchange(GET).says(version());
    }
    let mut refused = vmm.connect();
    let answer = refused.answer("a connection too many").expect("an answer");
    assert_eq!(
        answer.head,
        "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40"
    );
    assert_eq!(answer.body, r#"{ "error": "Too many open connections" }"#);
    assert!(refused.is_closed());
    vmm.get("/version").says(version());
}

fn a_closed_connection_makes_room(lab: &Lab) {
    let vmm = lab.start();
    let mut others: Vec<Client> = (0..9).map(|_| vmm.connect()).collect();
    others.iter_mut().for_each(|other| other.exchange(GET).says(version()));
    let closed = others.pop().expect("a connection");
    assert!(closed.closes_after_eof());
    vmm.connect().exchange(GET).says(version());
}

fn connections_are_served_in_turn(lab: &Lab) {
    let vmm = lab.start();
    let (mut a, mut b) = (vmm.connect(), vmm.connect());
    a.exchange(b"PUT /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}").done();
    b.exchange(b"PATCH /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"b\":2}").done();
    a.exchange(b"GET /mmds HTTP/1.1\r\n\r\n").says(json!({ "a": 1, "b": 2 }));
}

fn a_half_closed_connection_is_closed(lab: &Lab) {
    let vmm = lab.start();
    let mut client = vmm.connect();
    client.write(b"GET /ver");
    assert!(client.closes_after_eof());
    vmm.get("/version").says(version());
}
