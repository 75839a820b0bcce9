"""The verbs that weigh packages before a promotion: compare two, and time one."""
