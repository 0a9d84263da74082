//! Byte streams to the store: ssh, unix socket, or a local process.
