# Load.data: nomad isn't told that it needs db
# api: nomad has nothing like --lease
# api: nomad has nothing like --alert
# api: nomad has nothing like --start-seconds
# api: nomad has nothing like --backoff-max
# api: nomad has nothing like --log-size
# api: nomad has nothing like --success-codes
# api: nomad has nothing like --no-restart-codes
# api: nomad starts it again after a success, too
# api: nomad can't look for "exec:test -e up"
# api: nomad can't look for "https://example.org:8443/x"
# api: nomad can't look for "log:started"
# api: nomad isn't told that it needs db
# api: nomad isn't told that it needs Load.data
# api: put the values of API_KEY, TOKEN and in /srv/app/.env into a variable: nomad var put nomad/jobs/shop/api NAME=value
# worker: nomad can't look for "http:/ok"
# worker: nomad isn't told that it needs api
# daemon is left out: nomad has nothing like --type forking
# clock is left out: nomad has nothing like --type stdio
job "shop" {
  type = "service"
  group "db" {
    network {
      port "main" { static = 6379 }
    }
    service {
      name = "db"
      provider = "nomad"
      port = "main"
      check {
        type = "tcp"
        interval = "10s"
        timeout = "5s"
      }
    }
    restart {
      attempts = 5
      interval = "600s"
      delay = "0.5s"
      mode = "fail"
    }
    task "db" {
      driver = "raw_exec"
      kill_timeout = "10s"
      config {
        command = "/bin/sh"
        args = ["-c", "cd \"$0\" && exec \"$@\"", "/srv/my data", "/bin/sleep", "60"]
      }
    }
  }
  group "load-data" {
    restart {
      attempts = 0
      interval = "600s"
      delay = "0.5s"
      mode = "fail"
    }
    reschedule {
      attempts = 0
      unlimited = false
    }
    task "load-data" {
      driver = "raw_exec"
      kill_timeout = "10s"
      config {
        command = "/bin/sh"
        args = ["-c", "cd \"$0\" && exec \"$@\"", "/srv", "/bin/sh", "-c", "echo \"$HOME\" 100% $${X}\u000a"]
      }
    }
  }
  group "api" {
    network {
      port "main" { static = 8000 }
    }
    service {
      name = "api"
      provider = "nomad"
      port = "main"
      check {
        type = "http"
        path = "/health"
        protocol = "http"
        interval = "2.5s"
        timeout = "5s"
      }
    }
    restart {
      attempts = 3
      interval = "600s"
      delay = "0.5s"
      mode = "fail"
    }
    task "api" {
      driver = "raw_exec"
      kill_timeout = "10s"
      config {
        command = "/bin/sh"
        args = ["-c", "cd \"$0\" && exec \"$@\"", "/srv/app", "/bin/sh", "-c", "exec uvicorn main:app --host 127.0.0.1 --port $PORT"]
      }
      env { PORT = "8000" }
      template {
        data = "{{with nomadVar \"nomad/jobs/shop/api\"}}API_KEY={{index . \"API_KEY\"}}\nTOKEN={{index . \"TOKEN\"}}\n{{end}}"
        destination = "secrets/env"
        env = true
      }
    }
  }
  group "worker" {
    restart {
      attempts = 0
      interval = "600s"
      delay = "0.5s"
      mode = "fail"
    }
    reschedule {
      attempts = 0
      unlimited = false
    }
    task "worker" {
      driver = "raw_exec"
      kill_timeout = "10s"
      config {
        command = "/bin/sh"
        args = ["-c", "cd \"$0\" && exec \"$@\"", "/srv", "no-such-program-here", "-v"]
      }
    }
  }
}
