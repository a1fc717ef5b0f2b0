//! The in-guest agent (PID 1, static) and the host side of its protocol, over any byte stream.
