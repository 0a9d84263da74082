//! The mount daemon: everything a host runs, and its control socket.
