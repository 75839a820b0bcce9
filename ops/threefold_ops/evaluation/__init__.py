"""What a package is worth before it is promoted: compared with another, timed, and priced."""
