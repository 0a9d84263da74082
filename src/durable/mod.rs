//! Durable writes, and a simulated disk that crashes at any sync.
