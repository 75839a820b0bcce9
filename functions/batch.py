"""placeholder"""
def handler(e, c):
    return {}
