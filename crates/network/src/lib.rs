//! Bridges, TAPs, addresses, nftables, DNS, published ports.
