//! The only program of an otherwise empty image: answers every datagram on port 7777 with itself. Compiled by the
//! test with rustc, statically.

fn main() {
    let socket = std::net::UdpSocket::bind("0.0.0.0:7777").expect("port 7777 is free");
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}
