"""What runs inside the emulator's own process and environment: Lambda functions under Lambda's own runtime client."""
