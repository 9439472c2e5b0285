import time
def test_x(marketplace, lens):
    t=time.time()
    print(marketplace.ran.exit_code, marketplace.ran.stdout, "STDERR", marketplace.ran.stderr)
    for a in [("index","list"),("search",str(marketplace.photo("m007")),"-k","5"),("search",str(marketplace.photo("m007")),"-k","5","--json"),("settings",),("index","rebuild"),("evaluate",),("embed",), ("--help",), ("search","-k","2000","x"), ("search","nophoto"),("index","list","x")]:
        t=time.time()
        try:
            r=lens(*a)
            print("=====",a,r.exit_code,time.time()-t); print(r.stdout); print("STDERR", r.stderr)
        except Exception as e:
            print("=====",a,"RAISED",repr(e))
